"""The number of a group -> its entries on a stream, its events and its step."""

from collections.abc import AsyncIterator
from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import WireError
from shared.messages import Codec, Event, StepIntent, StepRecord
from shared.topology import EVENTS, STEPS, Keys, StreamSpec

PAGE = 500
ENTRIES_PER_CALL = 200
"""Entries that one call of the script looks at: Redis answers nobody else meanwhile."""

_FIND = """
-- KEYS stream; ARGV where to begin, entries, group id; answers the last id, entries seen, payloads of the group
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
local found = {#page > 0 and page[#page][1] or '', #page}
for _, entry in ipairs(page) do
  local payload, group = '', ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'm' then payload = entry[2][i + 1] end
    if entry[2][i] == 'g' then group = entry[2][i + 1] end
  end
  if group == ARGV[3] then found[#found + 1] = payload end
end
return found
"""


async def find_entries(redis: Redis, keys: Keys, spec: StreamSpec, group_id: int) -> list[bytes]:
    """The payloads of a group's entries, oldest first."""
    script, found, start = redis.register_script(_FIND), list[bytes](), "-"
    while True:
        args: list[Any] = [start, ENTRIES_PER_CALL, group_id]
        last, seen, *payloads = cast(list[Any], await script(keys=[keys.stream(spec)], args=args))
        found += payloads
        if seen < ENTRIES_PER_CALL:
            return found
        start = f"({last.decode()}"


async def find_events(redis: Redis, keys: Keys, group_id: int) -> list[Event]:
    """What happened to a group, oldest first, as far back as events are kept."""
    codec, found = cast(Codec[Event], Codec(Event)), list[Event]()
    async for fields in _newest_first(redis, keys, EVENTS):
        try:
            event = codec.decode(fields.get(b"m", b""))
        except WireError:
            continue
        if event.detail.get("group") == group_id:
            found.append(event)
    return found[::-1]


async def find_step(redis: Redis, keys: Keys, group_id: int) -> int | None:
    """The step whose intent names the group."""
    async for record in _records(redis, keys):
        if isinstance(record, StepIntent) and group_id in record.group_ids:
            return record.step
    return None


async def is_committed(redis: Redis, keys: Keys, step: int) -> bool:
    done = cast(bytes | None, await redis.hget(keys.counters, "step"))
    return int(done or 0) >= step


async def _records(redis: Redis, keys: Keys) -> AsyncIterator[StepRecord]:
    codec = cast(Codec[StepRecord], Codec(STEPS.message))
    async for fields in _newest_first(redis, keys, STEPS):
        try:
            yield codec.decode(fields.get(b"m", b""))
        except WireError:
            continue


async def _newest_first(redis: Redis, keys: Keys, spec: StreamSpec) -> AsyncIterator[dict[bytes, bytes]]:
    end = "+"
    while page := cast(list[Any], await redis.xrevrange(keys.stream(spec), end, count=PAGE)):
        for _, fields in page:
            yield fields
        end = f"({page[-1][0].decode()}"
