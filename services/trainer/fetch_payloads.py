"""Group ids of a step -> their scored rollouts, from the group hashes in few round trips, or from the archive."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from redis.asyncio import Redis

from services.trainer.archive import read_step
from services.trainer.share_step import Attempts
from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout, StepIntent
from shared.topology import Keys

GROUPS_PER_TRIP = 64


async def fetch_step(redis: Redis, keys: Keys, run_folder: Path, intent: StepIntent, wanted: Attempts) -> list[Rollout]:
    """What this rank trains of a step, by group in the order of the intent, then by attempt.

    Raises:
        RunRejected: a group is neither in Redis nor in the run's archive, or does not decode.
    """
    own = [group_id for group_id in intent.group_ids if group_id in wanted]
    payloads = await fetch_payloads(redis, keys, own, wanted)
    if not all(payloads):
        archived = await asyncio.to_thread(read_step, run_folder, intent.step)
        if archived is not None and archived.intent.group_ids == intent.group_ids:
            stored = dict(zip(intent.group_ids, archived.payloads, strict=True))
            payloads = [_only(stored[group_id], wanted[group_id]) for group_id in own]
    return decode_rollouts(own, payloads)


def _only(payloads: Sequence[bytes], attempts: list[int] | None) -> list[bytes]:
    return [payloads[attempt] for attempt in (range(len(payloads)) if attempts is None else attempts)]


async def fetch_rollouts(redis: Redis, keys: Keys, group_ids: list[int]) -> list[Rollout]:
    """All attempts that are in Redis, by group in the order given, then by attempt.

    Raises:
        RunRejected: a group is not in Redis any more, or does not decode; the step cannot be trained as recorded.
    """
    return decode_rollouts(group_ids, await fetch_payloads(redis, keys, group_ids))


async def fetch_payloads(
    redis: Redis, keys: Keys, group_ids: Sequence[int], wanted: Attempts | None = None
) -> list[list[bytes]]:
    """Encoded Rollouts by group, then by attempt; an empty list for a group that is not in Redis.

    Args:
        wanted: which attempts; all of groups that it does not name.
    """
    payloads: list[list[bytes]] = []
    for start in range(0, len(group_ids), GROUPS_PER_TRIP):
        trip = group_ids[start : start + GROUPS_PER_TRIP]
        chosen = [(wanted or {}).get(group_id) for group_id in trip]
        async with redis.pipeline(transaction=False) as pipe:
            for group_id, attempts in zip(trip, chosen, strict=True):
                if attempts is None:
                    pipe.hgetall(keys.group(group_id))
                else:
                    pipe.hmget(keys.group(group_id), [str(attempt) for attempt in attempts])
            answers = await pipe.execute()
        payloads += [_ordered(answer) for answer in answers]
    return payloads


def _ordered(answer: dict[bytes, bytes] | list[bytes | None]) -> list[bytes]:
    if isinstance(answer, dict):
        return [answer[name] for name in sorted(answer, key=int)]
    return [] if None in answer else cast(list[bytes], answer)


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
