"""A wish to go back to an older weight version, and what the trainer made of it: one key of the run.

asked -> recorded: a step is recorded that starts from that version; or refused: it cannot be had, and nothing changes.
"""

import time
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import WatchError

from shared.topology import Keys


@dataclass(frozen=True, slots=True)
class Rollback:
    """The last one that was asked for."""

    version: int
    asked: float
    """When, in seconds since the epoch."""
    state: Literal["asked", "recorded", "refused"] = "asked"
    step: int | None = None
    """recorded: the step that goes back, and the number under which the old weights are published again."""
    reason: str = ""
    """refused: why, and what could be had."""


_ROLLBACK: TypeAdapter[Rollback] = TypeAdapter(Rollback)


def encode_rollback(rollback: Rollback) -> bytes:
    return _ROLLBACK.dump_json(rollback)


async def read_rollback(redis: Redis, keys: Keys) -> Rollback | None:
    """The last one that was asked for; None if there never was one."""
    raw = cast(bytes | None, await redis.get(keys.rollback))
    return _ROLLBACK.validate_json(raw) if raw else None


async def ask_rollback(redis: Redis, keys: Keys, version: int) -> Rollback:
    """Ask the trainer to go back, unless it is asked already; the one that it is asked for now."""
    async with redis.pipeline(transaction=True) as pipe:
        while True:
            try:
                await pipe.watch(keys.rollback)
                standing = await read_rollback(redis, keys)
                if standing is not None and standing.state == "asked":
                    return standing
                pipe.multi()
                wanted = Rollback(version, time.time())
                pipe.set(keys.rollback, encode_rollback(wanted))
                await pipe.execute()
                return wanted
            except WatchError:
                continue
