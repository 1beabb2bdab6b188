"""Whatever workers do in whatever order, and wherever they die: each group is settled once."""

import random
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from services.reward.score import Score
from shared.messages import Attempt
from shared.streams import Message
from tests.conftest import until
from tests.services.reward.reward_cases import (
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


async def live_and_die(redis: Redis, name: str, chance: random.Random) -> None:
    """A worker that receives some attempts, joins some of them, acknowledges some of those, and is gone."""
    stream, groups = attempts(redis, name, lease_s=0.01, max_deliveries=1000), group_join(redis, keep_most)
    received: list[Message[Attempt]] = await stream.receive(chance.randint(1, 9), 0.02)
    chance.shuffle(received)
    joined = received[: chance.randint(0, len(received))]
    for message in joined:
        await groups.join([groups.entry(message, Score(chance.random()))])
    await stream.acknowledge(joined[: chance.randint(0, len(joined))])
