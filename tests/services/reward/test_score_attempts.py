"""A reward that scores whole groups: gathered unscored, scored by the message that completes the group."""

from redis.asyncio import Redis

from services.reward.score import Reward, Score
from services.reward.whole_rollouts import forward_of
from shared.joining import ScoredAttempt
from shared.messages import Rollout
from shared.topology import Keys
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


async def rank(group: list[Rollout]) -> list[Score]:
    """The shortest answer gets 1."""
    shortest = min(len(one.text) for one in group)
    return [Score(float(len(one.text) == shortest)) for one in group]


async def test_a_group_reward_sees_all_attempts_in_order_and_its_scores_are_stored(redis: Redis) -> None:
    stream = attempts(redis)
    async with working(stream, Reward(score_group=rank)):
        await send(redis, rollout(0, 1, "22"), rollout(1, 0), rollout(0, 0, "2"), rollout(0, 1, "a copy"))
        await until(lambda: all_settled(redis))
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 0.0]]
    assert [(one.text, one.reward) for one in await stored(redis, 0)] == [("2", 1.0), ("22", 0.0)]
    assert await redis.exists(Keys(RUN).unscored(0)) == 0
    assert await redis.exists(Keys(RUN).unscored(1)) == 1


async def test_a_worker_that_dies_while_it_scores_a_group_leaves_it_to_the_next_one(redis: Redis) -> None:
    dying = attempts(redis, "dying", lease_s=0.05)
    await dying.open()
    await send(redis, rollout(0, 0), rollout(0, 1))
    ledger = group_join(redis)._ledger  # pyright: ignore[reportPrivateUsage]
    received = await dying.receive(10, 0.1)
    gathered = [ScoredAttempt(message.body, forward_of(message), message.fields[b"m"]) for message in received]
    assert [joined.state for joined in await ledger.join(gathered, unscored=True)] == ["incomplete", "complete"]
    await dying.acknowledge(received[:1])
    async with working(attempts(redis, "next", lease_s=0.05), Reward(score_group=rank)):
        await until(lambda: all_settled(redis))
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 1.0]]


async def test_a_group_that_cannot_be_scored_is_dropped_once(redis: Redis) -> None:
    async def fail(group: list[Rollout]) -> list[Score]:
        raise RuntimeError("no judge today")

    stream = attempts(redis, lease_s=0.05, max_deliveries=2)
    async with working(stream, Reward(score_group=fail)):
        await send(redis, rollout(0, 0), rollout(0, 1))
        await until(lambda: all_settled(redis))
    assert [letter.error for letter in await dead(redis)] == ["no judge today"]
    assert (await counters(redis))["dropped:dead"] == 1
    assert await redis.hlen(Keys(RUN).unscored(0)) == 2, "kept for the day that the judge is back"
