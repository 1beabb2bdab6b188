"""Engines that were told to begin -> all of them paused, and told that the weights come; or that they never do.

An engine that waits in a broadcast for one that hangs cannot be freed on a GPU, nor can the trainer. So nobody enters
it before all have said that they are ready to.
"""

import time
from collections.abc import Collection

from services.trainer.gather_engines import Engines
from shared.enrolment import Word, Write

READY_S = 5.0
"""Seconds from the group, or the last engine that drained, until all are paused; milliseconds where all are well."""
BEAT_S = 1.0


async def clear_engines(
    engines: Engines, version: int, announcement: str, names: Collection[str], until: float, first: Write | None
) -> bool:
    """Wait until all are ready, and are to be told that the weights come; False if one cannot, which all were told.

    Args:
        until: seconds since the epoch.
        first: what is said before the wait.
    """
    patient_until, beat, next_beat = time.monotonic() + READY_S, 0, time.monotonic() + BEAT_S
    while True:
        parts = await engines.look(version, announcement, names, first=first)
        states, first = {name: part.state for name, part in parts.items()}, None
        now = time.monotonic()
        if all(states.get(name) == "ready" for name in names):
            return True
        if "draining" in states.values():
            patient_until = now + READY_S
        if {"failed", "done"} & set(states.values()) or now > patient_until or time.time() > until:
            await engines.tell(engines.saying(version, names, Word(announcement, "over")))
            return False
        if now >= next_beat:
            await engines.tell(engines.saying(version, names, Word(announcement, "wait", beat)))
            beat, next_beat = beat + 1, now + BEAT_S
