"""A trainer killed at any point of a rollback, and a Redis that lost it: the run ends as if nothing had been."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer.step_ledger import StepLedger
from shared.messages import StepIntent
from shared.rollback import ask_rollback
from tests.services.trainer.bench import KEYS, Bench, Outcome, outcome
from tests.services.trainer.kill_points import COMMIT, INTEND, PUBLISH, SYNC, WRITE_ITEM
from tests.services.trainer.killed_trainer import Point, train_until_killed
from tests.services.trainer.recorded_groups import feed
from tests.services.trainer.test_exactness import flip_a_bit
from tests.services.trainer.test_rewind import restore, snapshot

RUN = {"trainer": {"steps": 8}}
UNHURT: list[Outcome] = []
ROLL_BACK = "services.trainer.step_ledger:StepLedger.roll_back"
TRAIN, TAKE_UP = "services.trainer.learner:RankLearner.train", "services.trainer.prepare_run:take_up"
POINTS = {
    "before it is recorded": Point(ROLL_BACK),
    "when it is recorded": Point(ROLL_BACK, after=True),
    "before the older state is loaded": Point(TAKE_UP, 2),
    "when the older state is loaded": Point(TAKE_UP, 2, after=True),
    "before a step on the way is trained again": Point(TRAIN),
    "when a step on the way is trained again": Point(COMMIT, after=True),
    "before its commit": Point(COMMIT, 2),
    "after its commit": Point(COMMIT, 2, after=True),
    "before the older version is published again": Point(PUBLISH, 2),
    "when it is published again": Point(PUBLISH, 2, after=True),
    "with its checkpoint half written": Point(WRITE_ITEM, 5, after=True, checkpoint=1),
    "with its checkpoint not in its place": Point(SYNC, 2, after=True, checkpoint=1),
    "with its checkpoint in its place": Point(SYNC, 3, after=True, checkpoint=1),
    "before the next intent": Point(INTEND),
    "after the next intent": Point(INTEND, after=True),
}


async def asked(redis: Redis, redis_url: str, home: Path) -> Bench:
    """A run that has done four steps, with checkpoints at 2 and 4, and is to go back to version 3; no trainer."""
    await feed(redis, "r1", range(12))
    await feed(redis, "r1", [12], version=4)
    await feed(redis, "r1", range(13, 22), version=5)
    bench = Bench(redis, home, **RUN)
    await train_until_killed(redis_url, home, [Point(INTEND, 5)], **RUN)
    await ask_rollback(redis, KEYS, 3)
    return bench


async def unhurt(redis: Redis, redis_url: str, tmp_path: Path) -> Outcome:
    if not UNHURT:
        bench = await asked(redis, redis_url, tmp_path / "unhurt")
        await bench.train()
        UNHURT.append(await outcome(bench))
        assert [
            record for record in await bench.records() if isinstance(record, StepIntent) and record.is_rollback
        ] == [StepIntent(5, [], 3, bench.settings.seed + 5)]
        await redis.flushdb()
    return UNHURT[0]


async def ends_like(hurt: Bench, expected: Outcome) -> None:
    await hurt.train()
    assert await hurt.state() == "finished"
    found = await outcome(hurt)
    found.must_equal(expected)
    counters: dict[str, Any] = found.ledger["counters"]
    assert (counters["trained"], counters["dropped:rolled_back"], counters["rolled_back"]) == (21, 1, 3)
    assert found.ledger["undecided"] == {}


@pytest.mark.parametrize("where", POINTS)
async def test_a_trainer_that_is_killed_in_a_rollback_ends_with_the_weights_of_one_that_was_not(
    redis: Redis, redis_url: str, tmp_path: Path, where: str
) -> None:
    expected = await unhurt(redis, redis_url, tmp_path)
    hurt = await asked(redis, redis_url, tmp_path / "hurt")
    await train_until_killed(redis_url, hurt.home, [POINTS[where]], **RUN)
    await ends_like(hurt, expected)


async def test_a_damaged_checkpoint_of_a_rollback_costs_time_and_nothing_else(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """That of step 4, which was left behind, does not stand in for it; that of step 2 does."""
    expected = await unhurt(redis, redis_url, tmp_path)
    hurt = await asked(redis, redis_url, tmp_path / "hurt")
    await train_until_killed(redis_url, hurt.home, [Point(INTEND, 2, after=True)], **RUN)
    folder = hurt.folder / "checkpoints"
    assert [path.name for path in sorted(folder.glob("step_*"))] == ["step_000002", "step_000004", "step_000005"]
    flip_a_bit(folder / "step_000005")
    await ends_like(hurt, expected)
    assert (folder / "damaged_step_000005").is_dir()


@pytest.mark.parametrize("lost", ["roll_back", "commit"])
async def test_a_redis_that_lost_a_rollback_gets_it_done_again(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    expected = await unhurt(redis, redis_url, tmp_path)
    hurt = await asked(redis, redis_url, tmp_path / "hurt")
    saved, original, calls = await snapshot(redis), getattr(StepLedger, lost), list[int]()

    async def losing(ledger: StepLedger, intent: StepIntent, *given: Any) -> Any:
        answer = await original(ledger, intent, *given)
        if intent.step == 5 and not calls:
            calls.append(intent.step)
            await restore(redis, saved)
        return answer

    monkeypatch.setattr(StepLedger, lost, losing)
    await asyncio.wait_for(hurt.train(), 60)
    assert calls == [5]
    (await outcome(hurt)).must_equal(expected)
