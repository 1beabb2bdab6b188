"""A run that a real feeder feeds, with a count of the feeder's turns to wait for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.feed_run import RunFeed
from services.gateway.feeder import Feeder
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.tasks import end
from shared.topology import Keys
from tests.conftest import until
from tests.services.gateway.gateway_cases import LOG, add, announce_all, released, sums

KEYS = Keys("r1")
TURNS: list[float | None] = []
"""What every turn of the feeders under test answered, in order."""


@contextlib.asynccontextmanager
async def feeding(redis: Redis, store: DatasetStore, lease_s: float = 6) -> AsyncIterator[None]:
    turn = RunFeed.turn

    async def noted(self: RunFeed) -> float | None:
        TURNS.append(await turn(self))
        return TURNS[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFeed, "turn", noted)
        task = asyncio.create_task(Feeder(redis, store, LOG, lease_s).feed())
        try:
            yield
        finally:
            await end(task)


async def more_turns(count: int) -> None:
    """Wait until the feeder has looked so many times more at where the run stands."""
    begun = len(TURNS)

    async def taken() -> bool:
        return len(TURNS) >= begun + count

    await until(taken)


async def start(redis: Redis, store: DatasetStore, settings: RunSettings, rows: int = 100) -> Ledger:
    """A run whose services are all there, at version 0."""
    if "sums" not in store.names():
        await add(store, "sums", sums(rows))
    await Runs(redis).create(settings)
    await announce_all(redis)
    ledger = Ledger(redis, KEYS)
    await ledger.advance("weight_version", 0)
    return ledger


async def until_released(redis: Redis, count: int) -> None:
    async def there() -> bool:
        return len(await released(redis)) >= count

    await until(there)
    await more_turns(3)  # in which a feeder that releases too much would do so
    assert len(await released(redis)) == count


async def state(redis: Redis, run: str = "r1") -> str:
    record = await Runs(redis).get(run)
    assert record is not None
    return record.state
