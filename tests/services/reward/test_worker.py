"""The reward worker against a real Redis: deliveries, duplicates, failures and stops."""

import asyncio
import math

from redis.asyncio import Redis

from services.reward.score import Reward, Score, read_score
from shared.evaluation import read_tallies
from shared.messages import Event, Rollout
from shared.rollout_parts import BYTES_PER_TOKEN
from shared.streams import Stream
from shared.topology import EVENTS, ROLLOUTS, Keys
from tests.conftest import until
from tests.services.reward.reward_cases import (
    RUN,
    all_settled,
    attempts,
    counters,
    dead,
    emitted,
    group_join,
    rollout,
    send,
    stored,
    working,
)


async def test_the_last_attempt_of_a_group_emits_it_with_the_scores_in_its_payloads(redis: Redis) -> None:
    stream = attempts(redis)
    async with working(stream):
        await send(redis, rollout(0, 1, "3"), rollout(0, 0, " 2\n"), rollout(1, 0))
        await until(lambda: all_settled(redis))
    (group,) = await emitted(redis)
    assert (group.group_id, group.rewards, group.lengths) == (0, [1.0, 0.0], [5, 5])
    assert (group.oldest_version, group.newest_version, group.kind) == (4, 4, "train")
    assert [one.reward for one in await stored(redis, 0)] == [1.0, 0.0]
    counts = await counters(redis)
    assert (counts["emitted"], counts["generated_tokens"]) == (1, 4)
    sizes = [len(payload) for group_id in (0, 1) for payload in await redis.hvals(Keys(RUN).group(group_id))]
    assert counts["stored_bytes"] == sum(sizes) + 3 * 2 * BYTES_PER_TOKEN


async def test_details_of_a_score_stay_with_the_attempt(redis: Redis) -> None:
    async def score(one: Rollout) -> Score:
        return read_score({"score": 0.5, "words": 3, "judge": "fine"})

    stream = attempts(redis)
    async with working(stream, Reward(score)):
        await send(redis, rollout(0, 0, size=1))
        await until(lambda: all_settled(redis))
    (one,) = await stored(redis, 0)
    assert (one.reward, one.reward_detail) == (0.5, {"words": 3.0, "judge": "fine"})


async def test_a_copy_of_an_attempt_changes_nothing(redis: Redis) -> None:
    stream = attempts(redis)
    async with working(stream):
        await send(redis, rollout(0, 0), rollout(0, 0, "another text"), rollout(0, 1))
        await until(lambda: all_settled(redis))
        await send(redis, rollout(0, 1, "late"), rollout(0, 0, "later"))
        await until(lambda: all_settled(redis))
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 1.0]]
    assert [one.text for one in await stored(redis, 0)] == ["2", "2"]


async def test_a_late_copy_does_not_bring_back_a_group_whose_payload_was_deleted_after_training(redis: Redis) -> None:
    stream = attempts(redis)
    async with working(stream):
        await send(redis, rollout(0, 0, size=1))
        await until(lambda: all_settled(redis))
        await redis.delete(Keys(RUN).group(0))
        await send(redis, rollout(0, 0, size=1))
        await until(lambda: all_settled(redis))
    assert len(await emitted(redis)) == 1
    assert await stored(redis, 0) == []


async def test_a_worker_that_dies_between_join_and_settle_leaves_the_group_to_the_next_one(redis: Redis) -> None:
    dying = attempts(redis, "dying", lease_s=0.05)
    await dying.open()
    await send(redis, rollout(0, 0), rollout(0, 1))
    join = group_join(redis)
    scored = [join.entry(message, Score(1.0)) for message in await dying.receive(10, 0.1)]
    joined = await join._ledger.join(scored)  # pyright: ignore[reportPrivateUsage]
    assert [answer.state for answer in joined] == ["incomplete", "complete"]
    async with working(attempts(redis, "next", lease_s=0.05)):
        await until(lambda: all_settled(redis))
    assert len(await emitted(redis)) == 1


async def test_an_attempt_that_redis_does_not_know_any_more_is_not_joined(redis: Redis) -> None:
    scoring, known = asyncio.Event(), asyncio.Event()

    async def score(one: Rollout) -> Score:
        scoring.set()
        await known.wait()
        return Score(1.0)

    stream = attempts(redis)
    async with working(stream, Reward(score)):
        await send(redis, rollout(0, 0, size=1), rollout(1, 0, size=1))
        await scoring.wait()
        (lost, _) = await redis.xrange(stream.key)
        await redis.xack(stream.key, "reward", lost[0])
        await redis.xdel(stream.key, lost[0])
        known.set()
        await until(lambda: all_settled(redis))
    assert [group.group_id for group in await emitted(redis)] == [1]
    assert await stored(redis, 0) == []


async def test_a_worker_that_dies_between_settle_and_ack_makes_no_second_group(redis: Redis) -> None:
    dying = attempts(redis, "dying", lease_s=0.05)
    await dying.open()
    await send(redis, rollout(0, 0), rollout(0, 1))
    join = group_join(redis)
    await join.join([join.entry(message, Score(1.0)) for message in await dying.receive(10, 0.1)])
    async with working(attempts(redis, "next", lease_s=0.05)):
        await until(lambda: all_settled(redis))
    assert len(await emitted(redis)) == 1
    assert (await counters(redis))["emitted"] == 1


async def test_an_attempt_that_cannot_be_scored_ends_dead_and_drops_its_group_once(redis: Redis) -> None:
    tried: list[int] = []

    async def score(one: Rollout) -> Score:
        tried.append(one.attempt)
        return read_score(math.nan if one.attempt == 1 else 1.0)

    stream = attempts(redis, lease_s=0.05, max_deliveries=3)
    async with working(stream, Reward(score)):
        await send(redis, rollout(0, 0, size=3), rollout(0, 1, size=3), rollout(1, 0, size=1))
        await until(lambda: all_settled(redis))
        await send(redis, rollout(0, 2, size=3))
        await until(lambda: all_settled(redis))
    (letter,) = await dead(redis)
    assert letter.error == "the reward returned nan; return a finite number"
    assert (letter.deliveries, tried.count(1)) == (3, 3)
    assert [group.group_id for group in await emitted(redis)] == [1]
    counts = await counters(redis)
    assert (counts["dropped"], counts["dropped:dead"]) == (1, 1)
    assert [one.attempt for one in await stored(redis, 0)] == [0, 2], "kept in case that somebody sends it again"


async def test_a_copy_that_ends_dead_leaves_the_emitted_group_alone(redis: Redis) -> None:
    async def score(one: Rollout) -> Score:
        return read_score(1.0 if one.text == "2" else None)

    stream = attempts(redis, lease_s=0.05, max_deliveries=1)
    async with working(stream, Reward(score)):
        await send(redis, rollout(0, 0, size=1))
        await until(lambda: all_settled(redis))
        await send(redis, rollout(0, 0, "a copy", size=1))
        await until(lambda: all_settled(redis))
    assert len(await dead(redis)) == 1
    assert "dropped" not in await counters(redis)
    assert len(await stored(redis, 0)) == 1


async def test_an_evaluation_group_is_tallied_and_never_filtered(redis: Redis) -> None:
    stream = attempts(redis)
    ours, theirs = {"kind": "eval", "pinned_version": 4}, {"weight_versions": [(4, 1), (5, 1)]}
    async with working(stream, keep=lambda group: "never"):
        await send(redis, *(rollout(group, attempt, **ours) for group in (0, 1) for attempt in (0, 1)))
        await send(redis, rollout(2, 0, **ours), rollout(2, 1, "3", **ours, **theirs))
        await until(lambda: all_settled(redis))
    (tally,) = await read_tallies(redis, Keys(RUN), 4)
    assert (tally.done, tally.attempts, tally.reward_sum, tally.off_version, tally.dropped) == (3, 6, 5.0, 1, 0)
    assert await emitted(redis) == []
    assert (await counters(redis)) == {"eval_done": 3, "stored_bytes": 0}


async def test_a_dead_evaluation_group_counts_as_done_and_dropped_in_the_tally(redis: Redis) -> None:
    async def score(one: Rollout) -> Score:
        raise RuntimeError("no")

    stream = attempts(redis, lease_s=0.05, max_deliveries=1)
    async with working(stream, Reward(score)):
        await send(redis, rollout(7, 0, kind="eval", pinned_version=4))
        await redis.xadd(stream.key, {"m": b"\xc1", "g": 8, "e": "4|sums"})
        await until(lambda: all_settled(redis))
    (tally,) = await read_tallies(redis, Keys(RUN), 4)
    assert (tally.done, tally.dropped) == (2, 2)
    assert (await counters(redis)) == {"eval_dropped": 2, "eval_dropped:dead": 2, "stored_bytes": 0}


async def test_a_filtered_group_returns_its_slot_with_its_reason_and_is_forgotten_later(redis: Redis) -> None:
    stream = attempts(redis)
    async with working(stream, keep=lambda group: "too easy" if group[0].group_id == 0 else None):
        await send(redis, rollout(0, 0, size=1), rollout(1, 0, size=1))
        await until(lambda: all_settled(redis))
    assert [group.group_id for group in await emitted(redis)] == [1]
    assert (await counters(redis))["dropped:too easy"] == 1
    keys = Keys(RUN)
    assert [await redis.ttl(key) > 0 for key in (keys.group(0), keys.arrays(0))] == [True, True]
    assert [await redis.ttl(key) for key in (keys.group(1), keys.arrays(1))] == [-1, -1]
    events: Stream[Event] = Stream(redis, RUN, EVENTS)
    assert [(event.event, event.detail["reason"]) for _, event in await events.read()] == [("dropped", "too easy")]


async def test_a_filter_that_raises_ends_its_group_alone(redis: Redis) -> None:
    def keep(group: list[Rollout]) -> str | None:
        if group[0].group_id == 0:
            raise ValueError("this filter is wrong")
        return None

    stream = attempts(redis, lease_s=0.05, max_deliveries=2)
    async with working(stream, keep=keep):
        await send(redis, rollout(0, 0), rollout(0, 1), rollout(1, 0), rollout(1, 1))
        await until(lambda: all_settled(redis))
    assert [group.group_id for group in await emitted(redis)] == [1]
    assert (await dead(redis))[0].error == "this filter is wrong"
    assert (await counters(redis))["dropped:dead"] == 1


async def test_a_stopped_worker_hands_back_what_it_holds_at_once_and_as_if_never_delivered(redis: Redis) -> None:
    scoring = asyncio.Event()

    async def score(one: Rollout) -> Score:
        scoring.set()
        await asyncio.Event().wait()
        raise AssertionError("the worker was stopped before")

    first = attempts(redis, "first")
    async with working(first, Reward(score)):
        await send(redis, rollout(0, 0, size=1))
        await scoring.wait()
    (pending,) = await redis.xpending_range(first.key, ROLLOUTS.group or "", "-", "+", 10)
    assert pending["times_delivered"] == 0
    async with working(attempts(redis, "second")):
        await until(lambda: all_settled(redis), deadline_s=5)
    assert len(await emitted(redis)) == 1
