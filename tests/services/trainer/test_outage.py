"""Redis is killed and comes back on its append-only file: the trainer waits and ends as if nothing had been."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from shared.redis_connection import connect
from shared.runs import Runs
from tests.services.trainer.bench import Bench, outcome, until_version
from tests.services.trainer.recorded_groups import feed
from tests.shared.own_redis import OwnRedis

STEPS = 6


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    server = OwnRedis(tmp_path / "redis_home", free_port())
    yield server
    server.kill()


async def again(server: OwnRedis, away_s: float) -> Redis:
    """Kill the server, keep it away, and start it on what it had written."""
    server.kill()
    await asyncio.sleep(away_s)
    return await server.start()


async def test_a_trainer_outlives_three_kills_of_redis_and_trains_what_it_would_have(
    own: OwnRedis, tmp_path: Path
) -> None:
    first = await own.start()
    unhurt = Bench(first, tmp_path / "unhurt", trainer={"steps": STEPS})
    await feed(first, "r1", range(3 * STEPS))
    await unhurt.train()
    expected = await outcome(unhurt)
    await first.flushdb()

    clients, redis = [first], connect(own.url)
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    training = asyncio.create_task(hurt.train())
    await until_version(first, 0)
    for version in (0, 2, 4):
        await feed(clients[-1], "r1", range(3 * version))
        await until_version(clients[-1], version)
        clients.append(await again(own, 0.7))
    await feed(clients[-1], "r1", range(3 * STEPS))
    await asyncio.wait_for(training, 60)
    assert await hurt.state() == "finished"
    (await outcome(hurt)).must_equal(expected)
    for client in (*clients, redis):
        await client.aclose()


async def test_a_trainer_that_waits_for_an_evaluation_outlives_a_kill_of_redis(own: OwnRedis, tmp_path: Path) -> None:
    first = await own.start()
    redis = connect(own.url)
    late = {"datasets": ["held_out"], "deadline_s": 4}
    bench = Bench(redis, tmp_path, eval=late, trainer={"steps": 1})
    await feed(first, "r1", range(3))
    training = asyncio.create_task(bench.train())
    await until_version(first, 0)
    second = await again(own, 1)
    await asyncio.wait_for(training, 60)
    record = await Runs(second).get("r1")
    assert record is not None
    assert record.state == "finished"
    for client in (first, second, redis):
        await client.aclose()
