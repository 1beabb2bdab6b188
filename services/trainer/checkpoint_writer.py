"""States of the models -> checkpoints that become durable while training goes on, one after the other."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from services.trainer.checkpoint import Checkpoints, Writing
from services.trainer.compute_thread import ComputeThread
from services.trainer.learner import Learner
from shared.logs import Log
from shared.tasks import end

CLOSE_S = 600.0
"""Seconds that the files of a checkpoint get to be written when its model is let go of."""


class CheckpointWriter:
    """At most one checkpoint is on its way; the next one waits for it.

    Threads write, which no cancellation reaches: whoever is cancelled while he waits here leaves them for `close`.
    """

    def __init__(self, checkpoints: Checkpoints, compute: ComputeThread, log: Log) -> None:
        self._checkpoints, self._compute, self._log = checkpoints, compute, log
        self._files: asyncio.Task[None] | None = None
        self._under_way: asyncio.Task[None] | None = None
        """The files, and what is to follow them."""

    async def begin(
        self, step: int, learner: Learner, about: Mapping[str, Any], then: Callable[[], Awaitable[None]]
    ) -> None:
        """Copy the state, and return; `then` is called once the checkpoint is durable."""
        await self.settle()
        begun = time.monotonic()
        copy = self._compute.run(lambda: self._checkpoints.begin(step, learner.state(), about))
        copied = asyncio.create_task(copy)
        self._files = asyncio.create_task(self._write(copied, begun))
        self._under_way = asyncio.create_task(_follow(self._files, then))
        await asyncio.shield(copied)

    async def settle(self) -> None:
        """Wait until what is under way is durable; raises what it raised."""
        if self._under_way is not None:
            await asyncio.shield(self._under_way)

    def check(self) -> None:
        """Raise what writing raised."""
        if self._under_way is not None and self._under_way.done():
            self._under_way.result()

    async def remove_old(self) -> int:
        """Keep the newest; returns the step whose samples no resume can need any more."""
        return await asyncio.to_thread(self._remove_old)

    async def close(self) -> None:
        """Wait until no file is written, whatever comes of it: none may appear after another model is loaded.

        A cancellation, even a repeated one, takes effect after that.
        """
        interrupted, until = False, time.monotonic() + CLOSE_S
        while self._files is not None and not self._files.done() and time.monotonic() < until:
            try:
                await asyncio.wait([self._files], timeout=until - time.monotonic())
            except asyncio.CancelledError:
                interrupted = True
        if self._under_way is not None:
            await end(self._under_way)
        if interrupted:
            raise asyncio.CancelledError

    def _remove_old(self) -> int:
        self._checkpoints.remove_old()
        return self._checkpoints.covered()

    async def _write(self, copied: asyncio.Task[Writing], begun: float) -> None:
        writing = await copied
        blocked_s = time.monotonic() - begun
        await asyncio.to_thread(self._checkpoints.finish, writing)
        seconds = {"seconds": time.monotonic() - begun, "seconds_blocked": blocked_s}
        self._log.info("checkpoint_saved", step=writing.step, **seconds)


async def _follow(files: asyncio.Task[None], then: Callable[[], Awaitable[None]]) -> None:
    await asyncio.shield(files)
    await then()
