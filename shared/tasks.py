"""Running tasks -> ended tasks, whatever they are waiting for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

AGAIN_S = 0.2


def is_told_to_end() -> bool:
    """True if the running task was cancelled; a CancelledError without that came from what it calls."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks and wait until all are done; what they raise is left to whoever holds them.

    A cancellation can get lost: on Python 3.11 `asyncio.wait_for`, which the Redis client uses for every command,
    swallows one that arrives in the moment in which its result does. So it is repeated until it has worked.
    Whoever ends tasks may be ended in the same way: a cancellation that comes meanwhile takes effect afterwards.
    """
    interrupted = False
    while waiting := {task for task in tasks if not task.done()}:
        for task in waiting:
            task.cancel()
        try:
            await asyncio.wait(waiting, timeout=AGAIN_S)
        except asyncio.CancelledError:
            interrupted = True
    for task in tasks:
        if not task.cancelled():
            task.exception()  # marks it as seen
    if interrupted:
        raise asyncio.CancelledError


async def see_through(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that is not to be broken off, and ends by itself; a cancellation takes effect afterwards."""
    task, interrupted = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            interrupted = True
    task.result()
    if interrupted:
        raise asyncio.CancelledError
