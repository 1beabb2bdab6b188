"""Finished steps -> weight versions: a snapshot at once, its publication while the next step waits and trains."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from services.trainer.compute_thread import ComputeThread
from services.trainer.evaluation_gate import EvaluationGate
from services.trainer.step_ledger import StepLedger
from shared.await_redis import AwaitRedis
from shared.tasks import end

Weights = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""Those of the learner as they are now, by the names and in the types that engines load."""
NOTHING = -1
"""No version: nobody evaluates it."""


class Publisher(Protocol):
    """The part of WeightPublisher that this file uses."""

    def stage(self, version: int, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Any: ...

    async def publish(self, staged: Any) -> object | None:
        """None if a newer snapshot has replaced this one."""
        ...


class Versions(Protocol):
    """Where the loop leaves the weights of a finished step."""

    async def offer(self, version: int, at_once: bool = False) -> None:
        """Take the weights as they are now; returns before they are published.

        They wait for the evaluation of the version before, unless they are to replace it `at_once`.
        """
        ...

    async def settle(self) -> None:
        """Wait until everything offered is published."""
        ...

    def check(self) -> None:
        """Raise what a publication in the background raised."""
        ...

    async def close(self, grace_s: float = 0) -> None:
        """Give what is in flight this many seconds, then drop it."""
        ...


class PublishedVersions:
    """Versions for engines: one publication in flight, and of those that come meanwhile the newest waits for it.

    One that is to be evaluated, or goes back, is published in any case, and the step after it waits for that.
    """

    def __init__(
        self, publisher: Publisher, weights: Weights, compute: ComputeThread, gate: EvaluationGate, first: int
    ) -> None:
        """`first`: the version that engines were told of last; older ones, trained again, are not for them."""
        self._publisher, self._weights, self._compute = publisher, weights, compute
        self._gate, self._first = gate, first
        self._published = first - 1
        """The one whose evaluation the next one waits for."""
        self._is_wanted = False
        """Whether the one that was offered last is published whatever comes after it."""
        self._waiting: Any = None
        self._in_flight: asyncio.Task[None] | None = None

    async def offer(self, version: int, at_once: bool = False) -> None:
        """See Versions."""
        if version < self._first:
            return
        if at_once or self._is_wanted:
            await self.settle()
        self._waiting = await self._compute.run(self._stage, version)
        self._is_wanted = at_once or self._gate.is_due(version)
        if at_once:
            self._published = NOTHING
        self.check()
        if self._in_flight is None or self._in_flight.done():
            self._in_flight = asyncio.create_task(self._publish())

    async def settle(self) -> None:
        """See Versions."""
        if self._in_flight is not None:
            await self._in_flight

    def check(self) -> None:
        """See Versions."""
        if self._in_flight is not None and self._in_flight.done():
            self._in_flight.result()

    async def close(self, grace_s: float = 0) -> None:
        """See Versions."""
        if self._in_flight is not None:
            await asyncio.wait([self._in_flight], timeout=grace_s)
            await end(self._in_flight)

    def _stage(self, version: int) -> tuple[int, Any]:
        return version, self._publisher.stage(version, version, self._weights())

    async def _publish(self) -> None:
        while self._waiting is not None:
            await self._gate.wait(self._published)
            (version, staged), self._waiting = self._waiting, None
            if await self._publisher.publish(staged) is not None:
                self._published = version


class CountedVersions:
    """Versions of a run without engines: a counter, which lets the feeder release the next rows."""

    def __init__(self, ledger: StepLedger, redis: AwaitRedis) -> None:
        self._ledger, self._redis = ledger, redis

    async def offer(self, version: int, at_once: bool = False) -> None:
        """See Versions."""
        await self._redis(lambda: self._ledger.served(version))

    async def settle(self) -> None:
        """See Versions."""

    def check(self) -> None:
        """See Versions."""

    async def close(self, grace_s: float = 0) -> None:
        """See Versions."""
