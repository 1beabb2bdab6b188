"""Group ids of a step -> their scored rollouts, fetched from the group hashes in few round trips."""

from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import RunRejected, WireError
from shared.messages import Codec, Rollout
from shared.topology import Keys

GROUPS_PER_TRIP = 64


async def fetch_rollouts(redis: Redis, keys: Keys, group_ids: list[int]) -> list[Rollout]:
    """All attempts, by group in the order given, then by attempt.

    Raises:
        RunRejected: a group is not in Redis any more, or does not decode; the step cannot be trained as recorded.
    """
    rollouts: list[Rollout] = []
    for start in range(0, len(group_ids), GROUPS_PER_TRIP):
        part = group_ids[start : start + GROUPS_PER_TRIP]
        async with redis.pipeline(transaction=False) as pipe:
            for group_id in part:
                pipe.hgetall(keys.group(group_id))
            answers = cast(list[dict[bytes, bytes]], await pipe.execute())
        for group_id, attempts in zip(part, answers, strict=True):
            rollouts += _decode(group_id, attempts)
    return rollouts


def _decode(group_id: int, attempts: dict[Any, bytes]) -> list[Rollout]:
    if not attempts:
        raise RunRejected(f"group {group_id} belongs to a recorded step but is not in Redis any more; start a new run")
    codec: Codec[Rollout] = Codec(Rollout)
    try:
        return [codec.decode(attempts[name]) for name in sorted(attempts, key=int)]
    except WireError as error:
        raise RunRejected(f"group {group_id} cannot be trained: {error}; run one version of all services") from error
