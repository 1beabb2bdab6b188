"""Group ids of a step -> their scored rollouts, from the hashes of groups in few round trips, or from the archive."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from redis.asyncio import Redis

from services.trainer.archive import read_step
from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout, StepIntent
from shared.rollout_parts import Parts, join_parts
from shared.topology import Keys

T = TypeVar("T")
GROUPS_PER_TRIP = 4
"""More would make Redis hold a longer answer than its processor caches, which costs more than the round trips do."""


async def fetch_step(redis: Redis, keys: Keys, run_folder: Path, intent: StepIntent) -> list[Rollout]:
    """What a step trains, by group in the order of the intent, then by attempt.

    Raises:
        RunRejected: a group is neither in Redis nor in the run's archive, or does not decode.
    """
    parts = await fetch_parts(redis, keys, intent.group_ids)
    if not all(parts):
        archived = await asyncio.to_thread(read_step, run_folder, intent.step)
        if archived is not None and archived.intent.group_ids == intent.group_ids:
            codec: Codec[Rollout] = Codec(Rollout)
            return _decode_all(intent.group_ids, archived.payloads, codec.decode)
    return _decode_all(intent.group_ids, parts, lambda of_one: join_parts(*of_one))


async def fetch_rollouts(redis: Redis, keys: Keys, group_ids: list[int]) -> list[Rollout]:
    """All attempts that are in Redis, by group in the order given, then by attempt.

    Raises:
        RunRejected: a group is not in Redis any more, or does not decode; the step cannot be trained as recorded.
    """
    return _decode_all(group_ids, await fetch_parts(redis, keys, group_ids), lambda of_one: join_parts(*of_one))


async def fetch_parts(redis: Redis, keys: Keys, group_ids: Sequence[int]) -> list[list[Parts]]:
    """The parts of Rollouts by group, then by attempt; an empty list for a group that is not in Redis."""
    parts: list[list[Parts]] = []
    for start in range(0, len(group_ids), GROUPS_PER_TRIP):
        async with redis.pipeline(transaction=False) as pipe:
            for group_id in group_ids[start : start + GROUPS_PER_TRIP]:
                pipe.hgetall(keys.group(group_id))
                pipe.hgetall(keys.arrays(group_id))
            answers = cast(list[dict[bytes, bytes]], await pipe.execute())
        parts += [_pair(attempts, arrays) for attempts, arrays in zip(answers[::2], answers[1::2], strict=True)]
    return parts


def _pair(attempts: dict[bytes, bytes], arrays: dict[bytes, bytes]) -> list[Parts]:
    if not attempts.keys() <= arrays.keys():
        return []
    return [(attempts[name], arrays[name]) for name in sorted(attempts, key=int)]


def _decode_all(
    group_ids: Sequence[int], groups: Sequence[Sequence[T]], decode: Callable[[T], Rollout]
) -> list[Rollout]:
    return [r for group_id, one in zip(group_ids, groups, strict=True) for r in _decode(group_id, one, decode)]


def _decode(group_id: int, attempts: Sequence[T], decode: Callable[[T], Rollout]) -> list[Rollout]:
    if not attempts:
        raise RunRejected(f"group {group_id} belongs to a recorded step but is not in Redis any more; start a new run")
    try:
        return [decode(attempt) for attempt in attempts]
    except WireError as error:
        raise RunRejected(f"group {group_id} cannot be trained: {error}; run one version of all services") from error
