"""The bytes of attempts in Redis -> how many groups may be under way all the same, and one event that says so."""

import time

from redis.asyncio import Redis

from services.gateway.read_standing import RunStanding
from shared.admission import MIB
from shared.messages import Event
from shared.run_settings import RunSettings
from shared.streams import Stream
from shared.topology import EVENTS, Keys

FIELD = "held_back"
"""Field of the cursor: when it was told, once a run."""


def limit_when_full(settings: RunSettings, standing: RunStanding) -> int:
    """The most groups that may be under way while the attempts in Redis take more than the run allows.

    None further, as long as something there can leave: trained groups go with the next checkpoint, for which a trainer
    that waits for groups does not wait; dead ones go when a person decides. Else what the next step needs, for without
    it nothing would ever leave.
    """
    if standing.dead_groups or standing.forgotten < standing.intended:
        return 0
    return (standing.intended + 1) * settings.rollout.groups_per_step


def why_held_back(settings: RunSettings, stored_bytes: int, dead_groups: int) -> str:
    """What holds groups back, and what to do about it."""
    told = (
        f"{stored_bytes / MIB:.0f} MiB of attempts are in Redis and rollout.max_stored_mib is"
        f" {settings.rollout.max_stored_mib}, so groups are released only for the next step, and only once trained ones"
        " have left Redis with a checkpoint, which the trainer writes early when it waits; with a larger"
        " rollout.max_stored_mib or a smaller trainer.checkpoint_every the run need not wait"
    )
    if dead_groups:
        told += f". Dead groups are kept there, too ({dead_groups}): discard them or send them again (sluice dead)"
    return told


async def hold_back(redis: Redis, settings: RunSettings, standing: RunStanding) -> None:
    """Tell it, the first time in a run; the run's description says it for as long as it lasts."""
    keys = Keys(settings.name)
    if await redis.hsetnx(keys.cursor, FIELD, str(time.time())):
        why = why_held_back(settings, standing.stored_bytes, standing.dead_groups)
        detail = {"stored_bytes": standing.stored_bytes, "why": why}
        await Stream[Event](redis, settings.name, EVENTS).publish(Event(time.time(), "gateway", "held_back", detail))
