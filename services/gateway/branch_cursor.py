"""A step of a run -> the place in its datasets behind all rows that it had released for its steps up to there."""

from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.mix_datasets import Cursor, draw, load_cursor
from shared.messages import Codec, Event, StepIntent, StepRecord
from shared.run_settings import DataSettings
from shared.topology import EVENTS, PROMPTS, ROLLOUTS, STEPS, Keys, StreamSpec

PAGE = 500
BEGIN = "begin"
"""Field of the cursor of a branch: where its own first row was."""


async def released_until(redis: Redis, keys: Keys, step: int) -> int:
    """How many training groups had been released when the newest group of the steps up to `step` was."""
    newest = await _newest_group(redis, keys, step)
    if newest < 0:
        return 0
    evaluations = await _evaluations_until(redis, keys, newest)
    return newest + 1 - evaluations


async def begin_of(redis: Redis, keys: Keys) -> Cursor:
    """Where the run's first row was: the beginning, unless the run is a branch itself."""
    text = cast(bytes | None, await redis.hget(keys.cursor, BEGIN))
    return load_cursor(text.decode()) if text else {}


def cursor_behind(begin: Cursor, data: DataSettings, sizes: dict[str, int], released: int) -> Cursor:
    """The cursor after so many groups of this mix."""
    return draw(begin, {share.name: share.weight for share in data.datasets}, sizes, released)[1]


async def _newest_group(redis: Redis, keys: Keys, step: int) -> int:
    codec, newest = cast(Codec[StepRecord], Codec(STEPS.message)), -1
    for fields in await _entries(redis, keys, STEPS):
        record = codec.decode(fields[b"m"])
        if isinstance(record, StepIntent) and record.step <= step:
            newest = max([newest, *record.group_ids])
    return newest


async def _evaluations_until(redis: Redis, keys: Keys, newest: int) -> int:
    """Evaluation groups with ids up to `newest`: the evaluated ones, those that were dropped, those still under way."""
    bits = cast(bytes | None, await redis.getrange(keys.evaluated, 0, newest // 8)) or b""
    found = {8 * i + bit for i, byte in enumerate(bits) for bit in range(8) if byte & (128 >> bit)}
    for spec in (PROMPTS, ROLLOUTS):
        found |= {int(fields[b"g"]) for fields in await _entries(redis, keys, spec) if b"e" in fields}
    events = cast(Codec[Event], Codec(EVENTS.message))
    for fields in await _entries(redis, keys, EVENTS):
        if b"g" in fields and events.decode(fields[b"m"]).detail.get("kind") == "eval":
            found.add(int(fields[b"g"]))
    return sum(group_id <= newest for group_id in found)


async def _entries(redis: Redis, keys: Keys, spec: StreamSpec) -> list[dict[bytes, bytes]]:
    found: list[dict[bytes, bytes]] = []
    start = "-"
    while entries := cast(list[Any], await redis.xrange(keys.stream(spec), start, count=PAGE)):
        found += [fields for _, fields in entries]
        start = f"({entries[-1][0].decode()}"
    return found
