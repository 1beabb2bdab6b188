"""One run, from starting to its end: wait for its services, release its groups, end a stop that nobody else can end."""

import contextlib
import time
from collections.abc import Generator

from redis.asyncio import Redis

from services.gateway.await_admission import AdmissionWait
from services.gateway.await_services import ServiceWait
from services.gateway.dataset_rows import DatasetRows
from services.gateway.dataset_store import DatasetStore
from services.gateway.feeder_lease import FeederLease
from services.gateway.read_standing import RunStanding, read_standing
from services.gateway.release_evaluation import EvaluationRelease
from services.gateway.release_training import TrainingRelease
from shared.logs import Log
from shared.messages import Event
from shared.run_settings import RunSettings
from shared.runs import ENDED, PRESENCE_S, Runs, present
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import EVENTS, Keys

START_POLL_S = 0.1
STOP_POLL_S = 0.5
HOPELESS_STEPS = 4
"""Steps' worth of groups that may all fail at the start of a run before the run does."""


class RunFeed:
    """Feeds one run while this gateway holds its lease."""

    def __init__(
        self, redis: Redis, settings: RunSettings, rows: dict[str, DatasetRows], lease: FeederLease, log: Log
    ) -> None:
        self._redis, self._keys, self._lease, self._log = redis, Keys(settings.name), lease, log
        ledger = Ledger(redis, self._keys)
        self._services = ServiceWait(redis, settings, log)
        self._training = TrainingRelease(ledger, lease.token, settings, rows)
        self._evaluation = EvaluationRelease(ledger, lease.token, settings, rows)
        self._admission = AdmissionWait(redis, self._keys)
        self._trainer_seen = time.monotonic()
        self._hopeless = HOPELESS_STEPS * settings.rollout.groups_per_step

    async def load(self) -> None:
        """Go on where the last feeder of this run stood."""
        await self._training.load(self._redis, self._keys)

    async def turn(self) -> float | None:
        """Do what is to be done now; returns seconds until the next turn, None when the run has ended."""
        self._lease.check()
        standing = await read_standing(self._redis, self._keys)
        if standing.state is None or standing.state in ENDED:
            return None
        if standing.state == "stopping":
            return await self._end_stop()
        self._trainer_seen = time.monotonic()  # a trainer that is being restarted gets its time to come back and save
        if standing.state == "starting":
            return 0 if await self._services.check(standing) else START_POLL_S
        if standing.emitted == 0 and standing.refused >= self._hopeless:
            await self._give_up(standing)
            return None
        return await self._release(standing)

    async def _give_up(self, standing: RunStanding) -> None:
        """A run of which nothing at all succeeds would drop groups for ever."""
        events: Stream[Event] = Stream(self._redis, self._keys.run, EVENTS)
        newest = await events.newest()
        detail = {"why": newest[1].event, **newest[1].detail} if newest else {"why": "see the events of the run"}
        why = detail.get("error", detail["why"])
        reason = (
            f"the first {standing.refused} groups were all refused or given up, and none succeeded; the last: {why}"
        )
        await Runs(self._redis).fail(self._keys.run, f"gateway: {reason}")

    async def _release(self, standing: RunStanding) -> float:
        # training groups first: the trainer works on them while the engines answer the evaluation
        released = await self._training.release(standing) or await self._evaluation.release(standing)
        if not released:
            await self._admission.wait()
            return 0
        first, version = standing.next_group_id, standing.weight_version
        self._log.debug("groups_released", run=self._keys.run, first=first, groups=released, weight_version=version)
        return 0

    async def _end_stop(self) -> float:
        if await present(self._redis, self._keys.run, "trainer"):
            self._trainer_seen = time.monotonic()
        elif time.monotonic() - self._trainer_seen > PRESENCE_S:
            reason = "stopped by request; no trainer was there to save a checkpoint"
            await Runs(self._redis).move(self._keys.run, ("stopping",), "stopped", reason)
        return STOP_POLL_S


@contextlib.contextmanager
def open_rows(datasets: DatasetStore, settings: RunSettings) -> Generator[dict[str, DatasetRows]]:
    """Every dataset that the run reads, open; Refusal if one is gone."""
    with contextlib.ExitStack() as stack:
        rows: dict[str, DatasetRows] = {}
        for name in sorted(settings.datasets):
            rows[name] = datasets.open(name)
            stack.callback(rows[name].close)
        yield rows
