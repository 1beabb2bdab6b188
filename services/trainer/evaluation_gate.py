"""A version whose evaluation is due -> a wait until its answers are scored, before the next version replaces it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from services.trainer.tell import tell
from shared.await_redis import AwaitRedis
from shared.errors import RunRejected
from shared.evaluation import Tally, is_complete, is_due, read_tallies
from shared.logs import Log
from shared.run_settings import RunSettings
from shared.topology import Keys

POLL_S = 0.2


class EvaluationGate:
    """Holds a version back for the evaluation of the one before it."""

    def __init__(
        self,
        redis: Redis,
        settings: RunSettings,
        leave: Callable[[], Awaitable[bool]],
        await_redis: AwaitRedis,
        log: Log,
    ) -> None:
        """`leave` is asked while the gate waits; the gate opens as soon as it says so."""
        self._redis, self._settings, self._leave, self._log = redis, settings, leave, log
        self._await_redis, self._keys = await_redis, Keys(settings.name)

    def is_due(self, version: int) -> bool:
        """Whether this version is evaluated, and so has to be published."""
        return version >= 0 and is_due(self._settings, version)

    async def wait(self, version: int) -> bool:
        """False if the evaluation of `version` did not complete within eval.deadline_s seconds.

        A run that only evaluates waits until it is complete, or the run is to stop: nothing else needs the engines.
        """
        if not self.is_due(version):
            return True
        until = math.inf if self._settings.evaluates_only else time.monotonic() + self._settings.eval.deadline_s
        while not is_complete(self._settings, await self._tallies(version)):
            if time.monotonic() > until:
                await self._report(version)
                return False
            if await self._leave():
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def check(self, version: int) -> None:
        """RunRejected if the complete evaluation of `version` has no answer at all: its rewards would be no result."""
        tallies = await self._tallies(version)
        if not any(tally.attempts for tally in tallies):
            raise RunRejected(
                f"none of the {sum(tally.groups for tally in tallies)} rows of eval.datasets was answered, all were"
                f" dropped; `sluice lineage {self._keys.run} 0` says why"
            )

    async def _tallies(self, version: int) -> list[Tally]:
        return await self._await_redis(lambda: read_tallies(self._redis, self._keys, version))

    async def _report(self, version: int) -> None:
        detail = {"version": version, "deadline_s": self._settings.eval.deadline_s}
        await tell(self._redis, self._keys.run, self._log, "evaluation_late", detail)
