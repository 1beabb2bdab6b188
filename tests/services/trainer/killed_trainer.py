"""A trainer in a process of its own that dies of SIGKILL at a chosen call, whatever its threads are writing then."""

import asyncio
import inspect
import multiprocessing
import os
import pkgutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from services.trainer.checkpoint import Checkpoints
from shared.redis_connection import connect
from tests.services.trainer.bench import Bench

CONTEXT = multiprocessing.get_context("forkserver")
"""A process that has imported everything and computed nothing is forked for each trainer."""
CONTEXT.set_forkserver_preload([__name__])
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Point:
    """A moment in the life of a trainer: before, or right after, a call."""

    function: str
    """`module:Class.method`, or `module:function`."""
    call: int = 1
    """Which one, counted from 1."""
    after: bool = False
    checkpoint: int = 0
    """Calls count from when this many checkpoints were begun."""


@dataclass(frozen=True)
class Hold:
    """Who gets to `at` waits there while the rest of the trainer goes on: until that gets to `until`, or for ever."""

    at: Point
    until: Point | None = None


async def train_until_killed(
    redis_url: str, home: Path, kills: list[Point], hold: Hold | None = None, **sections: Any
) -> None:
    """Train run r1 in another process until it comes to one of the points, and to that of the hold.

    Args:
        sections: of the run's settings, if this is its first trainer.

    Raises:
        AssertionError: it ended in another way.
    """
    assert await exit_code(redis_url, home, kills, hold, **sections) == -signal.SIGKILL


async def exit_code(
    redis_url: str, home: Path, kills: list[Point], hold: Hold | None = None, **sections: Any
) -> int | None:
    """The same, where the run may also come to its end; 0 if it did, -9 if it was killed."""
    process = CONTEXT.Process(target=_train, args=(redis_url, home, kills, hold, sections))
    process.start()
    try:
        await asyncio.to_thread(process.join, DEADLINE_S)
        return process.exitcode
    finally:
        process.kill()
        process.join()


def _train(redis_url: str, home: Path, kills: list[Point], hold: Hold | None, sections: dict[str, Any]) -> None:
    checkpoints, held, released = _Checkpoints(), threading.Event(), threading.Event()
    if hold is None:
        held.set()
    else:
        _stop_at(hold.at, checkpoints, lambda: _hold(held, released))
    if hold is not None and hold.until is not None:
        _stop_at(hold.until, checkpoints, lambda: _release(held, released))
    for kill in kills:
        _stop_at(kill, checkpoints, lambda: _kill(held))
    asyncio.run(_train_run(redis_url, home, sections))


async def _train_run(redis_url: str, home: Path, sections: dict[str, Any]) -> None:
    redis = connect(redis_url)
    await Bench(redis, home, **sections).train()
    await redis.aclose()


class _Checkpoints:
    """Counts those that were begun in this process."""

    def __init__(self) -> None:
        self.begun = 0
        original = Checkpoints.begin

        def begin(*args: Any, **kwargs: Any) -> Any:
            self.begun += 1
            return original(*args, **kwargs)

        Checkpoints.begin = begin


def _hold(held: threading.Event, released: threading.Event) -> None:
    held.set()
    released.wait(DEADLINE_S)


def _release(held: threading.Event, released: threading.Event) -> None:
    assert held.wait(DEADLINE_S), "what was to be held did not come"
    released.set()


def _kill(held: threading.Event) -> None:
    assert held.wait(DEADLINE_S), "what was to be held did not come"
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_at(point: Point, checkpoints: _Checkpoints, stop: Callable[[], None]) -> None:
    """Call `stop` at this point, where it may take its time: a coroutine waits for it in a thread of its own."""
    owner_path, name = point.function.rsplit("." if "." in point.function.partition(":")[2] else ":", 1)
    owner = pkgutil.resolve_name(owner_path)
    original, calls = getattr(owner, name), count(1)

    def is_here() -> bool:
        return checkpoints.begun >= point.checkpoint and next(calls) == point.call

    async def stopping_async(*args: Any, **kwargs: Any) -> Any:
        here = is_here()
        if here and not point.after:
            await asyncio.to_thread(stop)
        result = await original(*args, **kwargs)
        if here and point.after:
            await asyncio.to_thread(stop)
        return result

    def stopping(*args: Any, **kwargs: Any) -> Any:
        here = is_here()
        if here and not point.after:
            stop()
        result = original(*args, **kwargs)
        if here and point.after:
            stop()
        return result

    setattr(owner, name, stopping_async if inspect.iscoroutinefunction(original) else stopping)
