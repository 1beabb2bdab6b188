"""A trainer that waits while Redis is full: it makes room, and stays exact."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer.stored_limit import StoredLimit
from shared.scripts import Ledger
from shared.tasks import end
from tests.conftest import until
from tests.services.trainer.bench import KEYS, Bench, outcome
from tests.services.trainer.recorded_groups import feed, run_settings, small_model

FULL = 2**20 + 1
STANDINGS = {
    "full of trained groups, and the next step lacks some": ({}, True),
    "not full": ({"stored_bytes": 2**20}, False),
    "nothing that could leave": ({"forgotten_step": 2}, False),
    "all groups of the next step are under way": ({"released": 9}, False),
    "one of them was dropped": ({"released": 9, "dropped": 1}, True),
}


@pytest.mark.parametrize("name", STANDINGS)
async def test_it_holds_back_only_what_room_would_let_through(redis: Redis, tmp_path: Path, name: str) -> None:
    change, expected = STANDINGS[name]
    settings = run_settings(small_model(tmp_path / "model"), rollout={"max_stored_mib": 1})
    counts: dict[Any, Any] = {"stored_bytes": FULL, "forgotten_step": 1, "released": 6, **change}
    await redis.hset(KEYS.counters, mapping=counts)
    assert await StoredLimit(Ledger(redis, KEYS), settings).holds_back(2) == expected


async def test_what_left_early_is_not_needed_by_a_trainer_that_is_killed_then(redis: Redis, tmp_path: Path) -> None:
    undisturbed = Bench(redis, tmp_path / "undisturbed")
    await feed(redis, "r1", range(12))
    await undisturbed.train()
    wanted = await outcome(undisturbed)
    await redis.flushdb()

    bench = Bench(redis, tmp_path / "full", rollout={"max_stored_mib": 1}, trainer={"checkpoint_every": 50})
    await feed(redis, "r1", range(6))
    await redis.hset(KEYS.counters, "released", "6")
    await redis.hincrby(KEYS.counters, "stored_bytes", FULL)  # of others, so that it stays full
    training = asyncio.create_task(bench.train())

    async def all_left() -> bool:
        return not [group for group in range(6) if await redis.exists(KEYS.group(group))]

    await until(all_left, 30)
    assert [path.name for path in (bench.folder / "checkpoints").iterdir()] == ["step_000002"]
    await end(training)
    await feed(redis, "r1", range(6, 12))
    await redis.hincrby(KEYS.counters, "stored_bytes", -FULL)
    await bench.train()
    got = await outcome(bench)
    assert got.records == wanted.records
    assert {name for name, tensor in wanted.tensors.items() if not tensor.equal(got.tensors[name])} == set()
