"""What only the one trainer of a run may write: a replaced one changes nothing, nor one that Redis has forgotten."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer.step_ledger import StepLedger
from shared.errors import FencedOut, LedgerBehind
from shared.messages import Rendezvous, StepIntent, WeightVersion
from shared.rollback import Rollback
from shared.scripts import Ledger
from shared.version_ledger import Take
from tests.services.trainer.bench import KEYS
from tests.services.trainer.recorded_groups import feed

VERSION = WeightVersion(2, 2, [], "checksum", {}, Rendezvous("127.0.0.1", 1, "group", "gloo", 0.0, 0.0))
WRITES: dict[str, Callable[[StepLedger], Awaitable[Any]]] = {
    "an intent": lambda ledger: ledger.intend(StepIntent(1, [0], 0, 1), []),
    "a rollback": lambda ledger: ledger.roll_back(StepIntent(1, [], 0, 1), 3, Rollback(0, 1.0)),
    "the refusal of a rollback": lambda ledger: ledger.refuse_rollback(Rollback(0, 1.0), "it is gone"),
    "a commit": lambda ledger: ledger.commit(StepIntent(1, [0], 0, 1), {}, 1),
    "an announcement": lambda ledger: ledger.announce(VERSION),
    "what engines made of a version": lambda ledger: ledger.note_takes(1, {"one": Take("done", 1.0)}),
    "a served version": lambda ledger: ledger.served(2),
    "the deletion of groups": lambda ledger: ledger.forget(StepIntent(1, [0], 0, 0)),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_trainer_that_was_replaced_writes_nothing(redis: Redis, write: str) -> None:
    old, new = StepLedger(redis, "r1"), StepLedger(redis, "r1")
    await feed(redis, "r1", [0])
    await old.take_over()
    await old.announce(replace(VERSION, version=1))
    await new.take_over()
    before = await everything(redis)
    with pytest.raises(FencedOut, match="another trainer took this run over; this one stops"):
        await WRITES[write](old)
    assert await everything(redis) == before


@pytest.mark.parametrize("write", WRITES)
async def test_a_trainer_that_redis_has_forgotten_learns_of_it_by_any_write(redis: Redis, write: str) -> None:
    ledger = StepLedger(redis, "r1")
    await feed(redis, "r1", [0])
    await ledger.announce(replace(VERSION, version=1))
    before = await everything(redis)
    await ledger.take_over()
    await redis.delete(KEYS.trainer_epoch)
    with pytest.raises(LedgerBehind, match="Redis lost its last writes"):
        await WRITES[write](ledger)
    assert await everything(redis) == before


@pytest.mark.parametrize(("told", "left"), [(5, 3), (3, 3), (2, 2)])
async def test_a_version_of_a_step_that_redis_lost_is_taken_back_in_the_moment_of_taking_over(
    redis: Redis, told: int, left: int
) -> None:
    counts: dict[Any, Any] = {"step": 3, "weight_version": told}
    await redis.hset(KEYS.counters, mapping=counts)
    ledger = StepLedger(redis, "r1")
    await ledger.take_over()
    assert (await ledger.position()).told == left
    assert (await Ledger(redis, KEYS).counters())["weight_version"] == left


async def test_before_the_first_version_there_is_none_to_take_back(redis: Redis) -> None:
    ledger = StepLedger(redis, "r1")
    await ledger.take_over()
    assert (await ledger.position()).told == -1


async def everything(redis: Redis) -> dict[bytes, bytes | None]:
    return {key: await redis.dump(key) for key in sorted(await redis.keys())}


async def test_a_rollback_is_recorded_once_and_only_behind_the_newest_committed_step(redis: Redis) -> None:
    ledger, asked = StepLedger(redis, "r1"), Rollback(0, 1.0)
    await ledger.take_over()
    with pytest.raises(LedgerBehind, match="what step 2 goes back from"):
        await ledger.roll_back(StepIntent(2, [], 0, 1), 3, asked)
    for _ in range(2):
        await ledger.roll_back(StepIntent(1, [], 0, 1), 3, asked)
    with pytest.raises(LedgerBehind):
        await ledger.roll_back(StepIntent(2, [], 0, 1), 3, asked)
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["intended"], counters["released"], counters["rolled_back"]) == (1, 3, 3)
    assert (await ledger.lineage()).rollbacks == {1: 0}
    assert await ledger.rollback() == Rollback(0, 1.0, "recorded", 1)
    assert [intent.is_rollback for intent in await ledger.intents(0)] == [True]
