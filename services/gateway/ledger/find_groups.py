"""Entries of a stream -> the groups that they belong to; payloads stay in Redis."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from shared.topology import GROUPS, PROMPTS, ROLLOUTS, Keys, StreamSpec

PAGE = 200
"""Entries that one call looks at: Redis answers nobody else meanwhile, and an entry may be megabytes."""
HASHES_PER_TRIP = 2000

_PAGE = """
-- KEYS stream; ARGV where to begin, entries; answers the last id, then group id (or -1) and 1 for an evaluation, ...
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
local found = {''}
for i, entry in ipairs(page) do
  local group, evaluation = -1, 0
  for j = 1, #entry[2], 2 do
    if entry[2][j] == 'g' then group = tonumber(entry[2][j + 1]) end
    if entry[2][j] == 'e' then evaluation = 1 end
  end
  found[1], found[2 * i], found[2 * i + 1] = entry[1], group, evaluation
end
return found
"""


@dataclass(slots=True)
class Found:
    """Where groups were seen."""

    prompts: set[int] = field(default_factory=set[int])
    rollouts: Counter[int] = field(default_factory=Counter[int])
    """Group -> its attempts that wait for a reward."""
    evaluations: set[int] = field(default_factory=set[int])
    """Groups seen on prompts or rollouts that are evaluations."""
    stored: dict[int, int] = field(default_factory=dict[int, int])
    """Group -> its attempts that are stored, scored or not."""
    ready: set[int] = field(default_factory=set[int])


async def find_unsettled(redis: Redis, keys: Keys) -> Found:
    """The groups on prompts, then those on rollouts: in the order in which groups travel, so none slips through."""
    found = Found()
    for group_id, is_eval in await _scan(redis, keys, PROMPTS):
        found.prompts.add(group_id)
        _ = found.evaluations.add(group_id) if is_eval else None
    for group_id, is_eval in await _scan(redis, keys, ROLLOUTS):
        found.rollouts[group_id] += 1
        _ = found.evaluations.add(group_id) if is_eval else None
    return found


async def find_ready(redis: Redis, keys: Keys) -> set[int]:
    """The groups on the stream of complete groups, trained ones that no checkpoint covers included."""
    return {group_id for group_id, _ in await _scan(redis, keys, GROUPS)}


async def count_stored(redis: Redis, keys: Keys, group_ids: list[int]) -> dict[int, int]:
    """How many attempts of each group are stored; groups without any are left out."""
    stored: dict[int, int] = {}
    for start in range(0, len(group_ids), HASHES_PER_TRIP):
        part = group_ids[start : start + HASHES_PER_TRIP]
        async with redis.pipeline(transaction=False) as pipe:
            for group_id in part:
                pipe.hlen(keys.group(group_id))
                pipe.hlen(keys.unscored(group_id))
            lengths = cast(list[int], await pipe.execute())
        stored |= {
            g: n for g, n in zip(part, map(sum, zip(lengths[::2], lengths[1::2], strict=True)), strict=True) if n
        }
    return stored


async def _scan(redis: Redis, keys: Keys, spec: StreamSpec) -> list[tuple[int, bool]]:
    script, found, start = redis.register_script(_PAGE), list[tuple[int, bool]](), "-"
    while True:
        answer = cast(list[Any], await script(keys=[keys.stream(spec)], args=[start, PAGE]))
        found += [(g, bool(e)) for g, e in zip(answer[1::2], answer[2::2], strict=True) if g >= 0]
        if len(answer) < 1 + 2 * PAGE:
            return found
        start = f"({answer[0].decode()}"
