"""Group ids of a step -> their scored rollouts, from the hashes of groups in few round trips, or from the archive."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from services.trainer.archive import read_step
from services.trainer.share_step import Attempts
from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout, StepIntent
from shared.rollout_parts import Parts, join_parts
from shared.topology import Keys

T = TypeVar("T")
Answer = dict[bytes, bytes] | Sequence[bytes | None]
GROUPS_PER_TRIP = 4
"""More would make Redis hold a longer answer than its processor caches, which costs more than the round trips do."""


async def fetch_step(redis: Redis, keys: Keys, run_folder: Path, intent: StepIntent, wanted: Attempts) -> list[Rollout]:
    """What this rank trains of a step, by group in the order of the intent, then by attempt.

    Raises:
        RunRejected: a group is neither in Redis nor in the run's archive, or does not decode.
    """
    own = [group_id for group_id in intent.group_ids if group_id in wanted]
    parts = await fetch_parts(redis, keys, own, wanted)
    if not all(parts):
        archived = await asyncio.to_thread(read_step, run_folder, intent.step)
        if archived is not None and archived.intent.group_ids == intent.group_ids:
            stored = dict(zip(intent.group_ids, archived.payloads, strict=True))
            payloads = [_only(stored[group_id], wanted[group_id]) for group_id in own]
            codec: Codec[Rollout] = Codec(Rollout)
            return _decode_all(own, payloads, codec.decode)
    return _decode_all(own, parts, lambda of_one: join_parts(*of_one))


def _only(payloads: Sequence[bytes], attempts: list[int] | None) -> list[bytes]:
    return [payloads[attempt] for attempt in (range(len(payloads)) if attempts is None else attempts)]


async def fetch_rollouts(redis: Redis, keys: Keys, group_ids: list[int]) -> list[Rollout]:
    """All attempts that are in Redis, by group in the order given, then by attempt.

    Raises:
        RunRejected: a group is not in Redis any more, or does not decode; the step cannot be trained as recorded.
    """
    return _decode_all(group_ids, await fetch_parts(redis, keys, group_ids), lambda of_one: join_parts(*of_one))


async def fetch_parts(
    redis: Redis, keys: Keys, group_ids: Sequence[int], wanted: Attempts | None = None
) -> list[list[Parts]]:
    """The parts of Rollouts by group, then by attempt; an empty list for a group that is not in Redis.

    Args:
        wanted: which attempts; all of groups that it does not name.
    """
    parts: list[list[Parts]] = []
    for start in range(0, len(group_ids), GROUPS_PER_TRIP):
        trip = group_ids[start : start + GROUPS_PER_TRIP]
        chosen = [(wanted or {}).get(group_id) for group_id in trip]
        async with redis.pipeline(transaction=False) as pipe:
            for group_id, attempts in zip(trip, chosen, strict=True):
                _ask(pipe, keys.group(group_id), attempts)
                _ask(pipe, keys.arrays(group_id), attempts)
            answers = cast(list[Answer], await pipe.execute())
        pairs = zip(answers[::2], answers[1::2], chosen, strict=True)
        parts += [_pair(scored, arrays, attempts) for scored, arrays, attempts in pairs]
    return parts


def _ask(pipe: Pipeline, key: str, attempts: list[int] | None) -> None:
    if attempts is None:
        pipe.hgetall(key)
    else:
        pipe.hmget(key, [str(attempt) for attempt in attempts])


def _pair(scored: Answer, arrays: Answer, attempts: list[int] | None) -> list[Parts]:
    """Of the attempts that were asked for; none unless both parts of all of them are there."""
    if attempts is None:
        assert isinstance(scored, dict) and isinstance(arrays, dict)
        names = sorted(scored, key=int)
        scored, arrays = [scored[name] for name in names], [arrays.get(name) for name in names]
    if None in scored or None in arrays:
        return []
    return cast(list[Parts], list(zip(scored, arrays, strict=True)))


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
