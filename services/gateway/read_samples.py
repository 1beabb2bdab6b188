"""Group hashes that are still in Redis -> attempts as a person wants to see them, newest groups first."""

from typing import Any, cast

from redis.asyncio import Redis

from shared.messages import Attempt, Codec
from shared.rest_answers import Sample
from shared.topology import Keys

PAGE = 200
"""Group ids asked for at once."""
LOOK_BACK = 20_000
"""Group ids that are looked at, from the newest one; older groups are usually trained and deleted."""


async def read_samples(
    redis: Redis, run: str, limit: int, group_id: int | None, evaluations: bool | None = None
) -> list[Sample]:
    """Up to `limit` attempts, or those of one group.

    Args:
        evaluations: True: of evaluation groups only; False: of the others only.
    """
    keys = Keys(run)
    if group_id is not None:
        return (await _attempts(redis, keys, group_id))[:limit]
    newest = int(cast(bytes | None, await redis.hget(keys.counters, "next_group_id")) or 0)
    samples: list[Sample] = []
    for end in range(newest, max(newest - LOOK_BACK, 0), -PAGE):
        for group in await _existing(redis, keys, max(end - PAGE, 0), end):
            attempts = await _attempts(redis, keys, group)
            samples += [one for one in attempts if evaluations is None or (one.kind == "eval") == evaluations]
            if len(samples) >= limit:
                return samples[:limit]
    return samples


async def _existing(redis: Redis, keys: Keys, begin: int, end: int) -> list[int]:
    ids = range(end - 1, begin - 1, -1)
    async with redis.pipeline(transaction=False) as pipe:
        for group_id in ids:
            pipe.exists(keys.group(group_id))
        found = await pipe.execute()
    return [group_id for group_id, there in zip(ids, found, strict=True) if there]


async def _attempts(redis: Redis, keys: Keys, group_id: int) -> list[Sample]:
    codec: Codec[Attempt] = Codec(Attempt)
    stored = cast(dict[bytes, bytes], await cast(Any, redis.hgetall(keys.group(group_id))))
    return [_sample(codec.decode(stored[attempt])) for attempt in sorted(stored, key=int)]


def _sample(attempt: Attempt) -> Sample:
    return Sample(
        group_id=attempt.group_id,
        attempt=attempt.attempt,
        dataset=attempt.dataset,
        row=attempt.row,
        kind=attempt.kind,
        prompt=attempt.prompt,
        text=attempt.text,
        label=attempt.label,
        reward=attempt.reward,
        reward_detail=attempt.reward_detail,
        finish_reason=attempt.finish_reason,
        weight_versions=attempt.weight_versions,
        prompt_tokens=len(attempt.prompt_ids),
        response_tokens=attempt.tokens,
        worker=attempt.worker,
        preference=attempt.preference,
    )
