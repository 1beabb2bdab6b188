"""The independent reading of a run's keys finds what somebody has done to them."""

import numpy as np
import pytest
from redis.asyncio import Redis

from benchmarks.chaos.verdict import RunVerdict, judge
from shared.joining import complete
from shared.messages import Attempt, Codec, Event, GroupReady, Prompt, Rollout, StepCommit, StepIntent
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, STEPS, Keys

RUN, SIZE, TOKENS = "r1", 2, 5
KEYS = Keys(RUN)
SETTINGS = RunSettings.model_validate(
    {
        "name": RUN,
        "model": {"path": "m"},
        "data": {"datasets": [{"name": "d"}]},
        "rollout": {"group_size": SIZE, "groups_per_step": 2},
        "trainer": {"steps": 2},
    }
)


def rollout(group: int, attempt: int) -> Rollout:
    ids, logprobs = np.arange(TOKENS, dtype=np.int32), np.zeros(TOKENS, np.float32)
    versions = [(0, 2), (1, TOKENS - 2)]
    return Rollout(
        group_id=group,
        attempt=attempt,
        group_size=SIZE,
        kind="train",
        dataset="d",
        row=group,
        prompt="p",
        label=None,
        metadata={},
        prompt_ids=ids,
        token_ids=ids,
        logprobs=logprobs,
        loss_mask=[(1, TOKENS)],
        weight_versions=versions,
        finish_reason="stop",
        text="t",
        worker="w",
        seconds=0.0,
        reward=1.0,
    )


@pytest.fixture
async def finished(redis: Redis) -> Redis:
    """A run of two steps with two groups each, and a fifth group that was dropped."""
    await Runs(redis).create(SETTINGS)
    ledger = Ledger(redis, KEYS)
    await redis.set(KEYS.feeder_lease, "token")
    prompts = [Prompt(group, "train", "d", group, "p", SIZE) for group in range(5)]
    assert await ledger.release("token", 0, 100, prompts, ("d", "5"))
    entries = [entry_id for entry_id, _ in await Stream[Prompt](redis, RUN, PROMPTS).read()]
    await redis.xdel(KEYS.stream(PROMPTS), *entries)
    for group in range(5):
        for attempt in range(SIZE):
            await ledger.join([complete(rollout(group, attempt))])
    await ledger.drop(4, "train", "zero_std", Event(0.0, "reward", "dropped"), None)
    await _train(redis, ledger)
    await Runs(redis).move(RUN, ("queued",), "finished")
    return redis


async def _train(redis: Redis, ledger: Ledger) -> None:
    groups: Stream[GroupReady] = Stream(redis, RUN, GROUPS, "trainer")
    await groups.open()
    for group in range(4):
        await ledger.emit((GroupReady(group, "train", "d", group, [1, 1], [0.0, 1.0], 0, 1), SIZE * TOKENS))
    messages, epoch = await groups.receive(10, 0.1), await ledger.take_over()
    for step, ids in ((1, [0, 1]), (2, [2, 3])):
        entry_ids = [message.entry_id for message in messages if message.body.group_id in ids]
        await ledger.intend(epoch, StepIntent(step, ids, step - 1, 0), entry_ids)
        commit = StepCommit(step, step, {"response_tokens": float(2 * SIZE * TOKENS)})
        await ledger.commit(epoch, commit, ids, 2 * SIZE * TOKENS)


async def test_a_run_whose_books_are_right_is_perfect(finished: Redis) -> None:
    verdict = await judge(finished, RUN)
    assert verdict.problems == []
    assert verdict.perfect
    assert (verdict.released, verdict.trained, verdict.dropped) == (5, 4, {"zero_std": 1})
    assert (verdict.steps_done, verdict.steps_asked) == (2, 2)


async def test_a_group_that_is_nowhere_is_lost(finished: Redis) -> None:
    await finished.hincrby(KEYS.counters, "next_group_id", 1)
    assert (await judge(finished, RUN)).groups_lost == [5]


async def test_a_group_with_one_of_two_attempts_left_is_lost(finished: Redis) -> None:
    await finished.hincrby(KEYS.counters, "next_group_id", 1)
    await Stream[Attempt](finished, RUN, ROLLOUTS).publish(rollout(5, 0))
    assert (await judge(finished, RUN)).groups_lost == [5]
    await Stream[Attempt](finished, RUN, ROLLOUTS).publish(rollout(5, 1))
    assert (await judge(finished, RUN)).groups_lost == []


async def test_a_group_that_is_settled_and_has_no_entry_is_lost(finished: Redis) -> None:
    await finished.hincrby(KEYS.counters, "next_group_id", 1)
    await finished.setbit(KEYS.emitted, 5, 1)
    assert (await judge(finished, RUN)).groups_lost == [5]


async def test_a_group_of_two_steps_was_trained_twice(finished: Redis) -> None:
    codec: Codec[StepIntent] = Codec(StepIntent)
    await finished.xadd(KEYS.stream(STEPS), {"m": codec.encode(StepIntent(3, [1, 9], 2, 0))})
    verdict = await judge(finished, RUN)
    assert verdict.groups_trained_twice == [1]
    assert not verdict.perfect


async def problems_after(redis: Redis, key: str, field: str, amount: int) -> RunVerdict:
    await redis.hincrby(key, field, amount)
    return await judge(redis, RUN)


@pytest.mark.parametrize("margin", ["dataset|d", "worker|w", "version|1"])
async def test_tokens_that_are_missing_or_too_many_unbalance_the_books(finished: Redis, margin: str) -> None:
    assert not (await problems_after(finished, KEYS.accounts, f"trained|{margin}", 1)).balanced
    assert (await problems_after(finished, KEYS.accounts, f"trained|{margin}", -1)).balanced
    assert not (await problems_after(finished, KEYS.accounts, f"generated|{margin}", -1)).balanced


@pytest.mark.parametrize("counter", ["trained", "dropped", "dropped:zero_std", "step", "released", "stored_bytes"])
async def test_a_counter_that_does_not_count_is_a_problem(finished: Redis, counter: str) -> None:
    verdict = await problems_after(finished, KEYS.counters, counter, 1)
    assert verdict.problems
    assert not verdict.perfect


async def test_a_group_both_trained_and_dropped_is_a_problem(finished: Redis) -> None:
    await finished.setbit(KEYS.dropped, 2, 1)
    assert any("trained and dropped" in problem for problem in (await judge(finished, RUN)).problems)


async def test_a_step_that_was_begun_and_not_committed_is_a_problem(finished: Redis) -> None:
    *_, (last, _) = await Stream[StepIntent | StepCommit](finished, RUN, STEPS).read()
    await finished.xdel(KEYS.stream(STEPS), last)
    assert "step 2 was begun, and 1 is the last one done" in (await judge(finished, RUN)).problems
