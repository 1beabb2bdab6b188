"""Redis -> where a run stands, as the feeder needs it, in one round trip."""

from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from shared.runs import State
from shared.topology import Keys

COUNTERS = (
    "next_group_id",
    "released",
    "dropped",
    "weight_version",
    "emitted",
    "dropped:rejected",
    "dropped:dead",
    "stored_bytes",
    "intended",
    "forgotten_step",
)


@dataclass(frozen=True, slots=True)
class RunStanding:
    """A moment of a run."""

    state: State | None
    """None: there is no such run any more."""
    next_group_id: int
    under_way: int
    """Groups released and not dropped: what admission limits."""
    weight_version: int | None
    """None until the first version is served."""
    emitted: int = 0
    refused: int = 0
    """Groups that no engine or reward would ever take, or that were given up."""
    stored_bytes: int = 0
    """Of attempts in Redis."""
    intended: int = 0
    """The newest recorded step."""
    forgotten: int = 0
    """The groups of the steps up to here have left Redis."""
    dead_groups: int = 0
    """Groups that a person has to decide about; their attempts stay till then."""


async def read_standing(redis: Redis, keys: Keys) -> RunStanding:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hget(keys.record, "state")
        pipe.hmget(keys.counters, list(COUNTERS))
        pipe.scard(keys.dead_groups)
        state, counters, dead_groups = cast(tuple[bytes | None, list[bytes | None], int], await pipe.execute())
    next_group_id, released, dropped, version, emitted, rejected, dead, stored, intended, forgotten = (
        None if value is None else int(value) for value in counters
    )
    return RunStanding(
        state=cast(Any, state.decode()) if state else None,
        next_group_id=next_group_id or 0,
        under_way=(released or 0) - (dropped or 0),
        weight_version=version,
        emitted=emitted or 0,
        refused=(rejected or 0) + (dead or 0),
        stored_bytes=stored or 0,
        intended=intended or 0,
        forgotten=forgotten or 0,
        dead_groups=dead_groups,
    )
