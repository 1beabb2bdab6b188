"""A deployment under attack -> runs, one after the other, for as long as there are kills left; each goes to its end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.chaos.run_tree import run_tree
from benchmarks.chaos.stack import Stack, Variant
from sluice.answers import Run
from sluice.client import GatewayError, GatewayUnreachable

T = TypeVar("T")
POLL_S = 0.2
ENDED = ("finished", "stopped", "failed")
UNKNOWN, TAKEN, SERVER_ERROR = 404, 409, 500
ANSWER_S = 120.0
"""Seconds for the gateway to answer one question, through its own restarts and those of Redis."""
STALL_S = 240.0
"""Seconds without a new step after which a run is stuck."""


class Stuck(Exception):
    """A run makes no steps any more, or nobody answers for it."""


@dataclass
class RunSeries:
    """Keeps one run going."""

    stack: Stack
    variant: Variant
    seed: int
    steps: int
    names: list[str] = field(default_factory=list[str])
    now: Run | None = None

    async def follow(self, more: Callable[[], bool]) -> None:
        """Start a run, wait for its end, start the next one while `more` says so; Stuck if one does not go on."""
        while True:
            name = f"chaos-{self.seed}-{len(self.names)}"
            self.names.append(name)
            tree = run_tree(self.stack, name, len(self.names) - 1, self.steps, self.variant)
            run = await self._until_ended(name, tree)
            if run.state != "finished" or not more():
                return

    async def step_made(self) -> None:
        """Wait until a run has made a step that it had not made before."""
        before = self._progress()
        while self._progress() <= before:
            await asyncio.sleep(POLL_S)

    def _progress(self) -> tuple[int, int]:
        """Number of the run and its step, as far as was heard."""
        return len(self.names), self.now.step if self.now and self.now.run == self.names[-1] else 0

    async def _until_ended(self, name: str, tree: dict[str, Any]) -> Run:
        run = await self._start(name, tree)
        step, since = -1, time.monotonic()
        while run.state not in ENDED:
            await asyncio.sleep(POLL_S)
            run = self.now = await self._start(name, tree)
            if run.step != step:
                step, since = run.step, time.monotonic()
            if time.monotonic() - since > STALL_S:
                raise Stuck(f"{name} stands in step {step} of {self.steps} for {STALL_S:g} s, {run.state}")
        return run

    async def _start(self, name: str, tree: dict[str, Any]) -> Run:
        """The run as it is. It is created if it is not there: Redis may lose what it was told in its last second."""
        try:
            return await self.ask(lambda: self.stack.client.run(name))
        except GatewayError as error:
            if error.status != UNKNOWN:
                raise
        try:
            return await self.ask(lambda: self.stack.client.start_run(tree))
        except GatewayError as error:
            if error.status != TAKEN:  # an answer that got lost on its way
                raise
        return await self.ask(lambda: self.stack.client.run(name))

    async def ask(self, call: Callable[[], T]) -> T:
        """Ask until the gateway is there and Redis behind it."""
        until = time.monotonic() + ANSWER_S
        while True:
            try:
                return await asyncio.to_thread(call)
            except (GatewayUnreachable, GatewayError) as error:
                if isinstance(error, GatewayError) and error.status < SERVER_ERROR:
                    raise
                if time.monotonic() > until:
                    raise Stuck(f"the gateway gives no answer for {ANSWER_S:g} s: {error}") from error
            await asyncio.sleep(POLL_S)
