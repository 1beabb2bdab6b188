"""What each engine has done with its device memory, for the turn that it heard of last -> read by the trainer."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis

from shared.runs import present
from shared.topology import Keys

PRESENT = "engine-memory"
"""Role of sidecars that take turns, in the signs of life; they are heard of before they launch anything."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """The answer of one engine to a turn of the trainer's."""

    turn: str
    state: Literal["releasing", "released", "none"]
    """releasing: its requests are being stopped; released: its process has given its memory away; none: it has no
    process, and launches none before it is the engines' turn."""
    since: float
    """Seconds since the epoch."""
    seconds: float = 0
    """What giving the memory away took."""
    reason: str = ""
    """none: why the process was ended, if it would not give its memory away."""

    def gave(self, turn: str) -> bool:
        """Whether the engine holds no memory in this turn."""
        return self.turn == turn and self.state != "releasing"


_PART: TypeAdapter[MemoryPart] = TypeAdapter(MemoryPart)


async def write_memory_part(redis: Redis, keys: Keys, engine: str, part: MemoryPart) -> None:
    mapping: dict[Any, Any] = {engine: _PART.dump_json(part)}
    await redis.hset(keys.memory_parts, mapping=mapping)


async def forget_memory_part(redis: Redis, keys: Keys, engine: str) -> None:
    """The engine's sidecar leaves the run."""
    await redis.hdel(keys.memory_parts, engine)


async def read_memory_parts(redis: Redis, keys: Keys) -> dict[str, MemoryPart | None]:
    """What was last heard of each engine whose sidecar is alive; None of those that have answered nothing yet."""
    raw = cast(dict[bytes, bytes], await redis.hgetall(keys.memory_parts))
    found = {engine.decode(): _PART.validate_json(part) for engine, part in raw.items()}
    return {engine: found.get(engine) for engine in await present(redis, keys.run, PRESENT)}
