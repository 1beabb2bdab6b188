"""A run that is starting -> running, as soon as every role that it needs is present."""

import time

from redis.asyncio import Redis

from services.gateway.read_standing import RunStanding
from shared.logs import Log
from shared.run_settings import RunSettings
from shared.runs import Runs, present

NEEDED = {
    "rl": ("trainer", "engine", "rollout", "reward"),
    "sft": ("trainer", "rollout"),
    "dpo": ("trainer", "rollout"),
}
LOG_EVERY_S = 10.0


class ServiceWait:
    """Waits for the services of one run, and says in the log for whom."""

    def __init__(self, redis: Redis, settings: RunSettings, log: Log) -> None:
        self._redis, self._log = redis, log
        self._run, self._kind = settings.name, settings.kind
        self._log_at = time.monotonic() + LOG_EVERY_S

    async def check(self, standing: RunStanding) -> bool:
        """Move the run to running if nothing is missing; True if it was moved."""
        missing = await self._missing(standing)
        if not missing:
            self._log.info("run_running", run=self._run)
            return await Runs(self._redis).move(self._run, ("starting",), "running")
        if time.monotonic() >= self._log_at:
            self._log.info("waiting_for_services", run=self._run, missing=", ".join(missing))
            self._log_at = time.monotonic() + LOG_EVERY_S
        return False

    async def _missing(self, standing: RunStanding) -> list[str]:
        there = {name.partition("/")[0] for name in await present(self._redis, self._run)}
        missing = [role for role in NEEDED[self._kind] if role not in there]
        if self._kind == "rl" and standing.weight_version is None:
            missing.append("the first weight version")
        return missing
