"""The newest turn of a run and what engines have done about it -> whose the shared device memory is, for REST."""

from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import WireError
from shared.memory_parts import read_memory_parts
from shared.messages import Codec, MemoryTurn
from shared.runs import present
from shared.status_answers import MemoryOfEngine, MemoryStatus
from shared.topology import MEMORY, Keys


async def describe_memory(redis: Redis, run: str) -> MemoryStatus | None:
    """None where trainer and engines take no turns, or the entry cannot be read by this gateway."""
    keys = Keys(run)
    entries = cast(list[Any], await redis.xrevrange(keys.stream(MEMORY), count=1))
    if not entries:
        return None
    try:
        turn = Codec[MemoryTurn](MemoryTurn).decode(entries[0][1][b"m"])
    except WireError:
        return None
    engines: list[MemoryOfEngine] = []
    for name, part in sorted((await read_memory_parts(redis, keys)).items()):
        if part is None or part.turn != turn.turn:  # of the turn before, or of none yet
            engines.append(MemoryOfEngine(engine=name, state="asked" if turn.holder == "trainer" else "free"))
        else:
            engines.append(MemoryOfEngine(engine=name, state=part.state, since=part.since, reason=part.reason))
    is_up = bool(await present(redis, run, "trainer"))
    until = turn.until or None
    return MemoryStatus(holder=turn.holder, since=turn.since, until=until, trainer_is_up=is_up, engines=engines)
