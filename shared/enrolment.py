"""What each engine and the trainer tell each other about one weight version: enrolled -> go -> done or failed."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis

from shared.memory_handle import MemoryHandle
from shared.topology import Keys

KEPT_S = 3600
"""Seconds after the last word about a version at which its parts are forgotten."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one engine in one version. The engine writes `enrolled`, the trainer `go`, the engine the end."""

    state: Literal["enrolled", "go", "done", "failed"]
    announcement: str
    """The announcement that this answers: the group name of its rendezvous."""
    incarnation: str
    """Names one life of the engine's process; a restarted engine is another member of the group."""
    ranks: int
    """Processes of the engine in the group."""
    group: str = ""
    """enrolled: the process group that the engine is in, if any. go: the one to use for this version."""
    first_rank: int = 0
    world_size: int = 0
    lent: list[list[MemoryHandle]] = field(default_factory=list[list[MemoryHandle]])
    """go, in a run whose weights are lent: the memory of each bucket, for each rank of the engine."""
    checksum: str = ""
    """done: the checksum of the version that the engine proved."""
    unverified: int = 0
    """done: tensors of the engine whose hash could not be predicted; -1 for all of them."""
    reason: str = ""
    """failed: why."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """done: seconds by phase."""


_PART: TypeAdapter[Part] = TypeAdapter(Part)


async def write_parts(redis: Redis, keys: Keys, version: int, parts: dict[str, Part]) -> None:
    """Write the parts of several engines, all at once: what the trainer tells them."""
    key = keys.enrolled(version)
    mapping: dict[Any, Any] = {engine: _PART.dump_json(part) for engine, part in parts.items()}
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(key, mapping=mapping)
        pipe.expire(key, KEPT_S)
        await pipe.execute()


async def write_answer(redis: Redis, keys: Keys, version: int, engine: str, part: Part) -> None:
    """Write what an engine tells the trainer, which waits for it."""
    key, answers = keys.enrolled(version), keys.answers(version)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(key, engine, _PART.dump_json(part))
        pipe.expire(key, KEPT_S)
        pipe.rpush(answers, engine)
        pipe.expire(answers, KEPT_S)
        await pipe.execute()


async def await_answer(redis: Redis, keys: Keys, version: int, deadline_s: float) -> None:
    """Return as soon as an engine has answered since the last time, or after `deadline_s` seconds."""
    answers = keys.answers(version)
    if await redis.blpop([answers], timeout=max(deadline_s, 0.01)):
        await redis.delete(answers)  # whoever is woken reads the parts of all


async def read_part(redis: Redis, keys: Keys, version: int, engine: str) -> Part | None:
    """What was last written about one engine."""
    raw = cast(bytes | None, await redis.hget(keys.enrolled(version), engine))
    return _PART.validate_json(raw) if raw else None


async def read_parts(redis: Redis, keys: Keys, version: int) -> dict[str, Part]:
    """What was last written about every engine."""
    raw = cast(dict[bytes, bytes], await redis.hgetall(keys.enrolled(version)))
    return {engine.decode(): _PART.validate_json(part) for engine, part in raw.items()}
