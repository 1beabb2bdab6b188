"""Group ids of a step -> their scored rollouts, from the group hashes in few round trips, or from the archive."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from redis.asyncio import Redis

from services.trainer.archive import read_step
from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout, StepIntent
from shared.topology import Keys

GROUPS_PER_TRIP = 64


async def fetch_step(redis: Redis, keys: Keys, run_folder: Path, intent: StepIntent) -> list[Rollout]:
    """What a step trains, by group in the order of the intent, then by attempt.

    Raises:
        RunRejected: a group is neither in Redis nor in the run's archive, or does not decode.
    """
    payloads = await fetch_payloads(redis, keys, intent.group_ids)
    if not all(payloads):
        archived = await asyncio.to_thread(read_step, run_folder, intent.step)
        if archived is not None and archived.intent.group_ids == intent.group_ids:
            payloads = archived.payloads
    return decode_rollouts(intent.group_ids, payloads)


async def fetch_rollouts(redis: Redis, keys: Keys, group_ids: list[int]) -> list[Rollout]:
    """All attempts that are in Redis, by group in the order given, then by attempt.

    Raises:
        RunRejected: a group is not in Redis any more, or does not decode; the step cannot be trained as recorded.
    """
    return decode_rollouts(group_ids, await fetch_payloads(redis, keys, group_ids))


async def fetch_payloads(redis: Redis, keys: Keys, group_ids: Sequence[int]) -> list[list[bytes]]:
    """Encoded Rollouts by group, then by attempt; an empty list for a group that is not in Redis."""
    payloads: list[list[bytes]] = []
    for start in range(0, len(group_ids), GROUPS_PER_TRIP):
        async with redis.pipeline(transaction=False) as pipe:
            for group_id in group_ids[start : start + GROUPS_PER_TRIP]:
                pipe.hgetall(keys.group(group_id))
            answers = cast(list[dict[bytes, bytes]], await pipe.execute())
        payloads += [[attempts[name] for name in sorted(attempts, key=int)] for attempts in answers]
    return payloads


def decode_rollouts(group_ids: Sequence[int], payloads: Sequence[Sequence[bytes]]) -> list[Rollout]:
    """Payloads by group -> rollouts; RunRejected for a group without any, or with one that does not decode."""
    return [r for group_id, attempts in zip(group_ids, payloads, strict=True) for r in _decode(group_id, attempts)]


def _decode(group_id: int, attempts: Sequence[bytes]) -> list[Rollout]:
    if not attempts:
        raise RunRejected(f"group {group_id} belongs to a recorded step but is not in Redis any more; start a new run")
    codec: Codec[Rollout] = Codec(Rollout)
    try:
        return [codec.decode(attempt) for attempt in attempts]
    except WireError as error:
        raise RunRejected(f"group {group_id} cannot be trained: {error}; run one version of all services") from error
