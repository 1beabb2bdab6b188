"""Whatever workers do in whatever order, and wherever they die: each group is settled once."""

import random
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from services.reward.score import Score
from shared.messages import Attempt
from shared.streams import Message
from shared.topology import Keys
from tests.conftest import until
from tests.services.reward.reward_cases import (
    RUN,
    all_settled,
    attempts,
    counters,
    emitted,
    group_join,
    rollout,
    send,
    stored,
    working,
)

GROUPS, SIZE = 6, 3


def keep_most(group: Sequence[Attempt]) -> str | None:
    return "unlucky" if group[0].group_id == 2 else None


@pytest.mark.parametrize("seed", range(8))
async def test_workers_that_die_anywhere_settle_each_group_once(redis: Redis, seed: int) -> None:
    chance = random.Random(seed)
    sent = [rollout(group, attempt, size=SIZE) for group in range(GROUPS) for attempt in range(SIZE)]
    sent += [rollout(one.group_id, one.attempt, "a copy", SIZE) for one in chance.sample(sent, 6)]
    chance.shuffle(sent)
    stream = attempts(redis, max_deliveries=1000)
    await stream.open()
    await send(redis, *sent)
    for number in range(6):
        await live_and_die(redis, f"dying-{number}", chance)
    async with working(attempts(redis, "last", lease_s=0.01, max_deliveries=1000), keep=keep_most):
        await until(lambda: all_settled(redis))
    assert sorted(group.group_id for group in await emitted(redis)) == [0, 1, 3, 4, 5]
    counts = await counters(redis)
    assert (counts["emitted"], counts["dropped"], counts["dropped:unlucky"]) == (GROUPS - 1, 1, 1)
    for group in await emitted(redis):
        assert [one.reward for one in await stored(redis, group.group_id)] == group.rewards


async def test_a_group_that_redis_lost_is_emitted_with_the_rewards_of_what_was_generated_anew(redis: Redis) -> None:
    one, two = attempts(redis, "one"), attempts(redis, "two")
    first, other = group_join(redis), group_join(redis)
    await one.open()
    await send(redis, rollout(0, 0, "lost"), forward="f1")
    await first.join([first.entry(message, Score(0.25)) for message in await one.receive(1, 0.02)])
    keys = Keys(RUN)
    await redis.delete(keys.group(0), keys.arrays(0), keys.tokens(0))
    await send(redis, rollout(0, 0, "anew"), rollout(0, 1, "anew"), forward="f2")
    await other.join([other.entry(message, Score(0.5)) for message in await two.receive(1, 0.02)])
    await first.join([first.entry(message, Score(0.75)) for message in await one.receive(1, 0.02)])
    (ready,) = await emitted(redis)
    assert ready.rewards == [0.5, 0.75] == [attempt.reward for attempt in await stored(redis, 0)]


async def live_and_die(redis: Redis, name: str, chance: random.Random) -> None:
    """A worker that receives some attempts, joins some of them, acknowledges some of those, and is gone."""
    stream, groups = attempts(redis, name, lease_s=0.01, max_deliveries=1000), group_join(redis, keep_most)
    received: list[Message[Attempt]] = await stream.receive(chance.randint(1, 9), 0.02)
    chance.shuffle(received)
    joined = received[: chance.randint(0, len(received))]
    for message in joined:
        await groups.join([groups.entry(message, Score(chance.random()))])
    await stream.acknowledge(joined[: chance.randint(0, len(joined))])
