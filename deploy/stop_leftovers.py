"""A home whose supervisor was killed -> none of its service processes left."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from deploy.process import birth, descendants
from deploy.supervisor_state import read_state

GRACE_S = 15.0
POLL_S = 0.1


async def stop_leftovers(home: Path) -> int:
    """End what an earlier supervisor of this home left running (it was killed); the number of processes ended.

    To be called only while no supervisor runs there. The orphans got SIGTERM from the kernel when the supervisor died,
    so they are on their way out; after GRACE_S seconds they are killed with all they started.
    """
    state = read_state(home)
    left = state.leftovers() if state is not None and not state.alive else {}
    family = {child: born for pid in left for child, born in descendants(pid).items()}
    _signal(left, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while _running(left) and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
    _signal({**left, **family}, signal.SIGKILL)
    return len(left)


def _running(processes: dict[int, str]) -> dict[int, str]:
    return {pid: born for pid, born in processes.items() if born and birth(pid) == born}


def _signal(processes: dict[int, str], number: signal.Signals) -> None:
    for pid in _running(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
