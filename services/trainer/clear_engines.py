"""Engines that were told to begin -> all of them paused, and told that the weights come; or that they never do.

An engine that waits in a broadcast for one that hangs cannot be freed on a GPU, nor can the trainer. So nobody enters
it before all have said that they are ready to.
"""

import time
from collections.abc import Collection

from services.trainer.gather_engines import Engines
from shared.enrolment import Word

READY_S = 5.0
"""Seconds from the group, or the last engine that drained, until all are paused; milliseconds where all are well."""
BEAT_S = 1.0


async def clear_engines(
    engines: Engines, version: int, announcement: str, names: Collection[str], until: float
) -> bool:
    """Wait until all are ready, then tell them so; False if one of them cannot, and all were told that.

    `until`: seconds since the epoch.
    """
    patient_until, beat, next_beat = time.monotonic() + READY_S, 0, time.monotonic() + BEAT_S
    while True:
        states = {name: part.state for name, part in (await engines.look(version, announcement, names)).items()}
        now = time.monotonic()
        if all(states.get(name) == "ready" for name in names):
            await engines.say(version, names, Word(announcement, "send"))
            return True
        if "draining" in states.values():
            patient_until = now + READY_S
        if {"failed", "done"} & set(states.values()) or now > patient_until or time.time() > until:
            await engines.say(version, names, Word(announcement, "over"))
            return False
        if now >= next_beat:
            await engines.say(version, names, Word(announcement, "wait", beat))
            beat, next_beat = beat + 1, now + BEAT_S
