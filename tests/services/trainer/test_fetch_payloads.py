"""Payloads: by group in the order asked for, then by attempt; what is gone or unreadable ends the run by name."""

import pytest
from redis.asyncio import Redis

from services.trainer.fetch_payloads import fetch_rollouts
from shared.errors import RunRejected
from shared.topology import Keys
from tests.services.trainer.recorded_groups import feed

KEYS = Keys("r1")


async def test_rollouts_come_by_group_and_attempt(redis: Redis) -> None:
    await feed(redis, "r1", range(70))
    rollouts = await fetch_rollouts(redis, KEYS, [*range(69, -1, -1)])
    assert [(r.group_id, r.attempt) for r in rollouts] == [(g, a) for g in range(69, -1, -1) for a in range(4)]


async def test_a_group_that_is_gone_is_named(redis: Redis) -> None:
    with pytest.raises(RunRejected, match="group 5 belongs to a recorded step but is not in Redis"):
        await fetch_rollouts(redis, KEYS, [5])


async def test_an_unreadable_payload_is_named(redis: Redis) -> None:
    await feed(redis, "r1", [5, 6])
    await redis.hset(KEYS.group(5), "0", b"\xc1")
    with pytest.raises(RunRejected, match="group 5 cannot be trained: not a Rollout"):
        await fetch_rollouts(redis, KEYS, [5])
    await redis.hset(KEYS.arrays(6), "0", bytes(8))
    with pytest.raises(RunRejected, match="group 6 cannot be trained: not a Rollout: it has arrays of 1 tokens"):
        await fetch_rollouts(redis, KEYS, [6])


async def test_a_group_without_the_arrays_of_an_attempt_is_gone(redis: Redis) -> None:
    await feed(redis, "r1", [5])
    await redis.hdel(KEYS.arrays(5), "3")
    with pytest.raises(RunRejected, match="group 5 belongs to a recorded step but is not in Redis"):
        await fetch_rollouts(redis, KEYS, [5])
