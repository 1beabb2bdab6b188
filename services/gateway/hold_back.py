"""The bytes of attempts in Redis -> whether further groups are held back, and one event that says so."""

import time

from redis.asyncio import Redis

from shared.messages import Event
from shared.run_settings import RunSettings
from shared.streams import Stream
from shared.topology import EVENTS, Keys

MIB = 2**20
FIELD = "held_back"
"""Field of the cursor: when it was told, once a run."""


def is_full(settings: RunSettings, stored_bytes: int) -> bool:
    """True while the attempts in Redis take more than the run allows."""
    return stored_bytes > settings.rollout.max_stored_mib * MIB


def why_held_back(settings: RunSettings, stored_bytes: int) -> str:
    """What holds groups back, and what to do about it."""
    limit, trainer = settings.rollout.max_stored_mib, settings.trainer
    return (
        f"no further groups are released: {stored_bytes / MIB:.0f} MiB of attempts are in Redis, and"
        f" rollout.max_stored_mib is {limit}. They leave when {trainer.keep_checkpoints} checkpoints stand behind their"
        " step, or when dead letters are discarded (sluice dead). If the trainer waits for groups too, this does not"
        f" end by itself: start the run with a larger rollout.max_stored_mib, or with trainer.checkpoint_every below"
        f" {trainer.checkpoint_every}"
    )


async def hold_back(redis: Redis, settings: RunSettings, stored_bytes: int) -> None:
    """Tell it, the first time in a run; the run's description says it for as long as it lasts."""
    keys = Keys(settings.name)
    if await redis.hsetnx(keys.cursor, FIELD, str(time.time())):
        detail = {"stored_bytes": stored_bytes, "why": why_held_back(settings, stored_bytes)}
        await Stream[Event](redis, settings.name, EVENTS).publish(Event(time.time(), "gateway", "held_back", detail))
