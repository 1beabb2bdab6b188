"""One moment of the ledger and the streams around it -> the place of every group that is not decided, or none."""

import asyncio
import time
from dataclasses import dataclass

from redis.asyncio import Redis

from services.gateway.ledger.find_groups import Found, count_stored, find_ready, find_unsettled
from services.gateway.ledger.take_snapshot import Snapshot, ids, take_snapshot
from shared.ledger_answers import Place
from shared.run_settings import RunSettings
from shared.topology import Keys

DEADLINE_S = 5.0
"""How long a group that is in no place is looked for."""
AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Placed:
    """A moment, and where its groups are."""

    snapshot: Snapshot
    places: dict[int, Place]
    """Every group that is neither decided nor lost."""
    lost: dict[int, str]
    """Group -> what was found of it."""


async def place_groups(redis: Redis, keys: Keys, settings: RunSettings) -> Placed:
    """Place the groups of a run that may be live.

    Streams are read in the order in which groups travel, the bitmaps after prompts and rollouts, the complete groups
    last: a group that moves on meanwhile is seen at its next place. What is released or re-driven meanwhile moves
    the other way; it is looked for again, with new bitmaps, until it turns up. Only what is in no place in every look
    until the deadline is lost.
    """
    sizes = (settings.attempts_per_group, settings.eval.group_size)
    found, snapshot, missing = await _look(redis, keys, sizes, None)
    places = _places(snapshot, found)
    until = time.monotonic() + DEADLINE_S
    while missing and time.monotonic() < until:
        await asyncio.sleep(AGAIN_S)
        found, now, missing = await _look(redis, keys, sizes, missing)
        places |= {g: place for g, place in _places(now, found).items() if g in places}
    for group_id in missing:
        places.pop(group_id, None)
    return Placed(snapshot, places, missing)


async def _look(
    redis: Redis, keys: Keys, sizes: tuple[int, int], only: dict[int, str] | None
) -> tuple[Found, Snapshot, dict[int, str]]:
    """One look at all groups, or at those of `only`: where they are, and which are nowhere."""
    found = await find_unsettled(redis, keys)
    snapshot = await take_snapshot(redis, keys)
    unsettled, ready = (
        [group_id for group_id in ids(bits) if only is None or group_id in only]
        for bits in (snapshot.unsettled, snapshot.ready)
    )
    found.stored = await count_stored(redis, keys, unsettled)
    found.ready = await find_ready(redis, keys) if ready else set()
    missing = {g: why for g in unsettled if (why := _why_lost(found, g, sizes))}
    gone = "is complete, but no step took it and it is not on the stream of complete groups"
    return found, snapshot, missing | {g: gone for g in ready if g not in found.ready}


def _why_lost(found: Found, group_id: int, sizes: tuple[int, int]) -> str:
    """Empty for a group that somebody will go on with."""
    if group_id in found.prompts:
        return ""
    waiting, stored = found.rollouts[group_id], found.stored.get(group_id, 0)
    if not waiting:
        left = f"; {stored} of its attempts are stored, and nothing will complete it" if stored else ""
        return f"is in no place{left}"
    size = sizes[group_id in found.evaluations]
    if waiting + stored < size:
        return f"can never be complete: {stored} of its {size} attempts are stored and {waiting} wait for a reward"
    return ""


def _places(snapshot: Snapshot, found: Found) -> dict[int, Place]:
    places: dict[int, Place] = dict.fromkeys(ids(snapshot.ready), "ready")
    for group_id in ids(snapshot.unsettled):
        if group_id in found.stored:
            places[group_id] = "joining"
        else:
            places[group_id] = "rollouts" if group_id in found.rollouts else "prompts"
    return places
