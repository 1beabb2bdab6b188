"""Attempts whose arrays lie in Redis -> complete Rollouts, for rewards and filters of a user, who may read tokens."""

import asyncio
from collections.abc import Iterable
from typing import cast

from redis.asyncio import Redis

from services.reward.score import ScoringFailed
from shared.messages import Attempt, Rollout
from shared.rollout_parts import join_parts
from shared.streams import Message
from shared.topology import Keys

CONCURRENCY = 16
"""Most attempts that are read at the same time, each on a connection of its own."""
GROUPS_PER_TRIP = 4
"""More would make Redis hold an answer of many megabytes."""
Group = dict[bytes, bytes]


def forward_of(message: Message[Attempt]) -> bytes:
    """The name of the forward that put the attempt on the stream, and its arrays into their hash."""
    return message.fields.get(b"f", b"")


class WholeRollouts:
    """Reads what is stored of groups, arrays included."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def of_message(self, message: Message[Attempt]) -> Rollout | None:
        """The attempt with its arrays; None if they are gone because its group was decided.

        Raises:
            ScoringFailed: the arrays in Redis are not those that came with the attempt.
        """
        keys, attempt = self._keys, message.body
        async with self._slots, self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.arrays(attempt.group_id), ["of", str(attempt.attempt)])
            pipe.getbit(keys.emitted, attempt.group_id)
            (forward, arrays), is_decided = await pipe.execute()
        if arrays is not None and forward == forward_of(message):
            return join_parts(message.fields[b"m"], arrays)
        if is_decided:
            return None
        raise foreign(attempt)

    async def of_groups(self, group_ids: Iterable[int], unscored: bool = False) -> dict[int, list[Rollout]]:
        """All stored attempts of groups, in order of their numbers; without groups of which nothing is left."""
        place, found = self._keys.unscored if unscored else self._keys.group, dict[int, list[Rollout]]()
        wanted = list(group_ids)
        for start in range(0, len(wanted), GROUPS_PER_TRIP):
            some = wanted[start : start + GROUPS_PER_TRIP]
            async with self._redis.pipeline(transaction=True) as pipe:
                for group_id in some:
                    pipe.hgetall(place(group_id))
                    pipe.hgetall(self._keys.arrays(group_id))
                hashes = cast(list[Group], await pipe.execute())
            triples = zip(some, hashes[::2], hashes[1::2], strict=True)
            found |= {group_id: _joined(stored, arrays) for group_id, stored, arrays in triples if stored and arrays}
        return found


def foreign(attempt: Attempt) -> ScoringFailed:
    """What is said of an attempt whose score would be kept with the tokens of another one."""
    return ScoringFailed(
        f"the tokens of attempt {attempt.attempt} of group {attempt.group_id} are not in Redis any more"
    )


def _joined(stored: Group, arrays: Group) -> list[Rollout]:
    return [join_parts(stored[number], arrays[number]) for number in sorted(stored, key=int)]
