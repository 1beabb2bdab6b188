"""The active run of the deployment, and after it the next one in the queue -> prompts, for ever."""

import asyncio
import contextlib

from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.feed_run import RunFeed, open_rows
from services.gateway.feeder_lease import LEASE_S, FeederLease
from shared.errors import FencedOut, SluiceError
from shared.logs import Log
from shared.redis_connection import UNREACHABLE
from shared.runs import ENDED, RunRecord, Runs
from shared.tasks import end
from shared.topology import Keys

IDLE_S = 0.25
"""How often an idle gateway looks for a run."""
RETRY_S = 0.5


class Feeder:
    """Follows the active run. Several gateways may run one each: the lease lets one feed, the others wait."""

    def __init__(self, redis: Redis, datasets: DatasetStore, log: Log, lease_s: float = LEASE_S) -> None:
        self._redis, self._datasets, self._log, self._lease_s = redis, datasets, log, lease_s
        self._runs = Runs(redis)

    async def feed(self) -> None:
        """Work until cancelled; an outage of Redis is waited out."""
        while True:
            try:
                await self._next()
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _next(self) -> None:
        record = await self._runs.activate_next()
        if record is None or record.state in ENDED:
            await asyncio.sleep(IDLE_S)
            return
        try:
            await self._hold(record)
        except UNREACHABLE:
            raise
        except FencedOut as error:
            self._log.warning("feeder_fenced_out", run=record.run, reason=str(error))
        except SluiceError as error:
            await self._fail(record, str(error))
        except Exception as error:  # noqa: BLE001  a defect that one run meets must not stop the others
            self._log.exception("feeder_failed", run=record.run)
            await self._fail(record, f"the feeder failed with {type(error).__name__}: {error}")

    async def _hold(self, record: RunRecord) -> None:
        lease = FeederLease(self._redis, Keys(record.run), self._lease_s)
        if not await lease.take():
            await asyncio.sleep(IDLE_S)
            return
        keeping = asyncio.create_task(lease.keep())
        try:
            self._log.info("run_taken", run=record.run, state=record.state)
            with open_rows(self._datasets, record.settings) as rows:
                await self._feed(RunFeed(self._redis, record.settings, rows, lease, self._log))
        finally:
            await end(keeping)
            with contextlib.suppress(*UNREACHABLE):
                await lease.give_back()

    async def _feed(self, feed: RunFeed) -> None:
        await feed.load()
        while (pause := await feed.turn()) is not None:
            await asyncio.sleep(pause)

    async def _fail(self, record: RunRecord, reason: str) -> None:
        self._log.error("run_failed", run=record.run, reason=reason)
        await self._runs.fail(record.run, f"gateway: {reason}")
