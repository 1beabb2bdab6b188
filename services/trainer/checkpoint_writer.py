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
"""Seconds that a checkpoint which is under way gets when its model is let go of."""


class CheckpointWriter:
    """At most one checkpoint is on its way; the next one waits for it."""

    def __init__(self, checkpoints: Checkpoints, compute: ComputeThread, log: Log) -> None:
        self._checkpoints, self._compute, self._log = checkpoints, compute, log
        self._under_way: asyncio.Task[None] | None = None

    async def begin(
        self, step: int, learner: Learner, about: Mapping[str, Any], then: Callable[[], Awaitable[None]]
    ) -> None:
        """Copy the state, and return; `then` is called once the checkpoint is durable."""
        await self.settle()
        begun = time.monotonic()
        writing = await self._compute.run(lambda: self._checkpoints.begin(step, learner.state(), about))
        self._under_way = asyncio.create_task(self._finish(writing, begun, time.monotonic() - begun, then))

    async def settle(self) -> None:
        """Wait until what is under way is durable; raises what it raised."""
        if self._under_way is not None:
            await self._under_way

    def check(self) -> None:
        """Raise what writing raised."""
        if self._under_way is not None and self._under_way.done():
            self._under_way.result()

    async def remove_old(self) -> int:
        """Keep the newest; returns the step whose samples no resume can need any more."""
        return await asyncio.to_thread(self._remove_old)

    async def close(self) -> None:
        """Wait for what is under way, whatever comes of it: none may appear on disk after another model is loaded."""
        if self._under_way is not None:
            await asyncio.wait([self._under_way], timeout=CLOSE_S)
            await end(self._under_way)

    def _remove_old(self) -> int:
        self._checkpoints.remove_old()
        return self._checkpoints.covered()

    async def _finish(
        self, writing: Writing, begun: float, blocked_s: float, then: Callable[[], Awaitable[None]]
    ) -> None:
        await asyncio.to_thread(self._checkpoints.finish, writing)
        seconds = {"seconds": time.monotonic() - begun, "seconds_blocked": blocked_s}
        self._log.info("checkpoint_saved", step=writing.step, **seconds)
        await then()
