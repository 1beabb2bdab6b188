"""Items, one by one -> batches -> an answer each: retries, waits through outages, and finds the one bad item."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from services.reward.remote.breaker import Breaker
from services.reward.remote.failures import Rejected, Unavailable
from services.reward.score import ScoringFailed
from shared.tasks import end

I = TypeVar("I")  # noqa: E741  an item of a batch
A = TypeVar("A")
LINGER_S = 0.02
"""How long an item waits for others to share its request."""
CONCURRENCY = 8
"""Most requests under way."""
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Asked(Generic[I, A]):
    """One item, and where its answer goes."""

    item: I
    size: int
    answer: "asyncio.Future[A]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one batch."""

    size: int
    """Most that its items are in sum; a larger item goes alone."""
    tries: int
    """Of a batch, before it is asked whether the service works without it."""


class BatchedCalls(Generic[I, A]):
    """Asks a service. Work waits here while the service is out; only a batch that fails while the service answers
    others is at fault, and is halved until the bad item stands alone."""

    def __init__(
        self,
        ask: Callable[[list[I]], Awaitable[list[A | ScoringFailed]]],
        breaker: Breaker,
        limits: Limits,
        wanted: str,
    ) -> None:
        """`wanted` says of whom and for what it is asked, in the sentence about an item without an answer."""
        self._call, self._breaker, self._limits, self._wanted = ask, breaker, limits, wanted
        self._waiting: dict[int, list[Asked[I, A]]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._proven: I | None = None
        """An item that was answered before: if it fails now, the service is out."""

    async def ask(self, item: I, size: int = 1, alike: int = 0) -> A:
        """The answer to one item; ScoringFailed if the service works but gives it none.

        Args:
            size: what it counts in a batch.
            alike: only items with the same number share a batch.
        """
        batch = self._waiting.get(alike, [])
        if batch and sum(one.size for one in batch) + size > self._limits.size:
            self._send(alike)
        asked: Asked[I, A] = Asked(item, size)
        batch = self._waiting.setdefault(alike, [])
        batch.append(asked)
        if sum(one.size for one in batch) >= self._limits.size:
            self._send(alike)
        elif len(batch) == 1:
            asyncio.get_running_loop().call_later(LINGER_S, partial(self._send, alike))
        return await asked.answer

    async def close(self) -> None:
        """Give up all calls under way."""
        await end(*self._calls)

    def _send(self, alike: int) -> None:
        batch = self._waiting.pop(alike, [])
        if batch:
            call = asyncio.create_task(self._answer_or_fail(batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _answer_or_fail(self, batch: list[Asked[I, A]]) -> None:
        try:
            await self._answer_all(batch, self._limits.tries)
        except Exception as error:  # noqa: BLE001  whoever waits for an answer has to hear of it
            for asked in batch:
                _answer(asked, ScoringFailed(repr(error)))

    async def _answer_all(self, batch: list[Asked[I, A]], tries: int) -> None:
        tried = 0
        while True:
            try:
                answers = await self._breaker.call(lambda: self._ask([asked.item for asked in batch]))
            except Rejected as error:
                return await self._blame(batch, error)
            except Unavailable as error:
                tried += 1
                if tried >= tries and await self._works():
                    return await self._blame(batch, error)
            else:
                return self._deliver(batch, answers)
            longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**tried)
            await asyncio.sleep(random.uniform(0, longest))  # full jitter: callers that failed together come back apart

    async def _ask(self, items: list[I]) -> list[A | ScoringFailed]:
        async with self._slots:
            return await self._call(items)

    async def _works(self) -> bool:
        proven = self._proven
        return proven is not None and await self._breaker.prove(lambda: self._call([proven]))

    async def _blame(self, batch: list[Asked[I, A]], error: Exception) -> None:
        if len(batch) == 1:
            _answer(batch[0], ScoringFailed(f"{self._wanted}: {error}"))
            return
        middle = len(batch) // 2
        await asyncio.gather(self._answer_all(batch[:middle], 1), self._answer_all(batch[middle:], 1))

    def _deliver(self, batch: list[Asked[I, A]], answers: list[A | ScoringFailed]) -> None:
        for asked, answer in zip(batch, answers, strict=True):
            if isinstance(answer, ScoringFailed):
                _answer(asked, ScoringFailed(f"{self._wanted}: {answer}"))
            else:
                self._proven = asked.item
                _answer(asked, answer)


def _answer(asked: Asked[I, A], answer: A | ScoringFailed) -> None:
    if asked.answer.done():
        return  # nobody waits any more
    if isinstance(answer, ScoringFailed):
        asked.answer.set_exception(answer)
    else:
        asked.answer.set_result(answer)
