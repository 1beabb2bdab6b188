"""What each engine and the trainer tell each other about one weight version: enrolled -> go -> done or failed."""

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis

from shared.memory_handle import MemoryHandle
from shared.topology import Keys

KEPT_S = 3600
"""Seconds after the last word about a version at which its parts are forgotten."""
WAKES_S = 60
"""The same of entries that only wake somebody: each engine leaves some of every version."""

SHORTEST_S = 0.01
"""To wait in Redis: 0 would be for ever."""

State = Literal[
    "enrolled",
    "go",
    "preparing",
    "draining",
    "pausing",
    "resuming",
    "ready",
    "loading",
    "proving",
    "done",
    "failed",
]
"""What an engine does with a version; the trainer writes `go`, the engine all others, in this order.

enrolled: it answered the announcement, serves its old version, and waits for its turn.
go: it is its turn.
preparing: it joins the process group, or fetches the files; it still serves.
draining: it takes no new requests until those in flight have ended (update mode drain).
pausing: its requests are being stopped.
resuming: it takes the memory again that it had given away; its requests have been waiting since then.
ready: it is paused, and waits until all engines of its group are.
loading: the weights come in.
proving: its hashes are compared with the trainer's.
done: it holds the version, and serves it. failed: `reason` says why not.
"""
AWAITED: frozenset[State] = frozenset(("enrolled", "draining", "ready", "done", "failed"))
"""States that change what the trainer does next; it is not woken by others."""
AT_WORK: frozenset[State] = frozenset(
    ("go", "preparing", "draining", "pausing", "resuming", "ready", "loading", "proving")
)
"""Told to take the version, and not at the end of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one engine in one version."""

    state: State
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
    files_refused: bool = False
    """failed: the files of the version are damaged or incomplete; the trainer writes them again, in full."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """done, failed: seconds by phase."""
    since: float = 0
    """When the state was entered, in seconds since the epoch; 0 is filled in when the part is written."""


@dataclass(frozen=True, slots=True)
class Word:
    """What the trainer tells an engine that is ready: to wait for others, to take the weights, or that none come."""

    announcement: str
    word: Literal["wait", "send", "over"]
    beat: int = 0
    """wait: counts up once a second; one that stands still is the last sign of a trainer that is gone."""


_PART: TypeAdapter[Part] = TypeAdapter(Part)
_WORD: TypeAdapter[Word] = TypeAdapter(Word)


async def write_parts(redis: Redis, keys: Keys, version: int, parts: dict[str, Part]) -> None:
    """Write the parts of several engines, all at once: what the trainer tells them."""
    key = keys.enrolled(version)
    dated = {engine: replace(part, since=part.since or time.time()) for engine, part in parts.items()}
    mapping: dict[Any, Any] = {engine: _PART.dump_json(part) for engine, part in dated.items()}
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(key, mapping=mapping)
        pipe.expire(key, KEPT_S)
        await pipe.execute()


async def write_answer(redis: Redis, keys: Keys, version: int, engine: str, part: Part) -> None:
    """Write what an engine tells the trainer, which waits for it."""
    key, answers = keys.enrolled(version), keys.answers(version, engine)
    dated = replace(part, since=part.since or time.time())
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(key, mapping={engine: _PART.dump_json(dated)})
        pipe.expire(key, KEPT_S)
        if part.state in AWAITED:
            pipe.rpush(answers, part.state)
            pipe.expire(answers, WAKES_S)
        await pipe.execute()


async def read_part(redis: Redis, keys: Keys, version: int, engine: str) -> Part | None:
    """What was last written about one engine."""
    raw = cast(bytes | None, await redis.hget(keys.enrolled(version), engine))
    return _PART.validate_json(raw) if raw else None


async def read_parts(redis: Redis, keys: Keys, version: int) -> dict[str, Part]:
    """What was last written about every engine."""
    return _parts(cast(dict[bytes, bytes], await redis.hgetall(keys.enrolled(version))))


async def await_parts(
    redis: Redis, keys: Keys, version: int, engines: Collection[str], deadline_s: float, everybodys: bool = False
) -> dict[str, Part]:
    """Wait until one of the engines has answered since the last time; then as `read_parts`, of them or of everybody.

    `deadline_s`: seconds after which nobody is waited for any more.
    """
    if not engines:
        await asyncio.sleep(max(deadline_s, SHORTEST_S))
        return await read_parts(redis, keys, version) if everybodys else {}
    names = sorted(engines)
    async with redis.pipeline(transaction=False) as pipe:  # one way to Redis for both: the trainer trains meanwhile
        pipe.blpop([keys.answers(version, name) for name in names], timeout=max(deadline_s, SHORTEST_S))
        if everybodys:
            pipe.hgetall(keys.enrolled(version))
        else:
            pipe.hmget(keys.enrolled(version), names)
        raw = (await pipe.execute())[1]
    return _parts(raw if everybodys else dict(zip((name.encode() for name in names), raw, strict=True)))


async def say(redis: Redis, keys: Keys, version: int, engines: Collection[str], word: Word) -> None:
    """Tell several engines the same, all at once."""
    key = keys.words(version)
    mapping: dict[Any, Any] = dict.fromkeys(engines, _WORD.dump_json(word))
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(key, mapping=mapping)
        pipe.expire(key, KEPT_S)
        for told in (keys.told(version, engine) for engine in engines):
            pipe.rpush(told, word.word)
            pipe.expire(told, WAKES_S)
        await pipe.execute()


async def await_word(redis: Redis, keys: Keys, version: int, engine: str, deadline_s: float) -> None:
    """Return as soon as the trainer has said something since the last time, or after `deadline_s` seconds."""
    await redis.blpop([keys.told(version, engine)], timeout=max(deadline_s, SHORTEST_S))


async def listen(redis: Redis, keys: Keys, version: int, engine: str) -> Word | None:
    """What the trainer told one engine last."""
    raw = cast(bytes | None, await redis.hget(keys.words(version), engine))
    return _WORD.validate_json(raw) if raw else None


def _parts(raw: Mapping[bytes, bytes | None]) -> dict[str, Part]:
    return {engine.decode(): _PART.validate_json(part) for engine, part in raw.items() if part is not None}
