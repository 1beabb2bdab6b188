"""A run whose attempts take too much of Redis: what the feeder releases all the same, and what it tells."""

from typing import Any

from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.describe_run import describe_run
from shared.messages import Event
from shared.runs import Runs
from shared.streams import Stream
from shared.topology import EVENTS
from tests.services.gateway.fed_run import KEYS, feeding, start, until_released
from tests.services.gateway.gateway_cases import add, run_settings, sums


async def test_groups_are_held_back_while_trained_ones_take_too_much_of_redis_and_it_is_told_once(
    redis: Redis, store: DatasetStore
) -> None:
    settings = run_settings(rollout={"max_stored_mib": 1, "max_staleness": 1}, eval={"datasets": ["held"]})
    await add(store, "held", sums(3))
    ledger = await start(redis, store, settings)
    full: dict[Any, Any] = {"stored_bytes": 2**20 + 1, "intended": 1}
    await redis.hset(KEYS.counters, mapping=full)
    async with feeding(redis, store):
        await until_released(redis, 3)  # the rows of the evaluation: training waits for its result
        assert "max_stored_mib is 1" in await held_back(redis)
        await redis.hset(KEYS.counters, "stored_bytes", 2**20)
        await until_released(redis, 3 + 8)
        assert not await held_back(redis)
        await redis.hset(KEYS.counters, "stored_bytes", 2**21)
        await ledger.advance("weight_version", 1)
        await until_released(redis, 3 + 8)
    events = [event for _, event in await Stream[Event](redis, "r1", EVENTS).read()]
    assert [event.event for event in events] == ["held_back"]
    assert "checkpoint" in events[0].detail["why"]


async def test_where_nothing_else_can_leave_redis_a_full_run_gets_the_groups_of_its_next_step(
    redis: Redis, store: DatasetStore
) -> None:
    settings = run_settings(rollout={"max_stored_mib": 1, "max_staleness": 1})
    ledger = await start(redis, store, settings)
    full: dict[Any, Any] = {"stored_bytes": 2**20 + 1, "intended": 1, "forgotten_step": 1, "weight_version": 1}
    await redis.hset(KEYS.counters, mapping=full)
    await redis.sadd(KEYS.dead_groups, 99)
    async with feeding(redis, store):
        await until_released(redis, 0)
        assert "sluice dead" in await held_back(redis)
        await ledger.discard(99, [])
        await until_released(redis, 8)
        assert "sluice dead" not in await held_back(redis)


async def held_back(redis: Redis) -> str:
    record = await Runs(redis).get("r1")
    assert record is not None
    return (await describe_run(redis, record)).held_back
