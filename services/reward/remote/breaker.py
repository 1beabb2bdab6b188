"""Calls to a service -> the same calls, parked while it is out: after failures in a row one at a time tries again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.reward.remote.failures import Rejected, Unavailable

T = TypeVar("T")
FAILURES_TO_OPEN = 5
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
OnChange = Callable[[bool, str], Awaitable[None]]
"""Called with (is the service available, why not)."""


class Breaker:
    """Closed: calls pass. Open: they wait in line; the first probes after a pause, and its success lets all pass."""

    def __init__(self, on_change: OnChange, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._on_change, self._first_pause_s = on_change, first_pause_s
        self._closed = asyncio.Event()
        self._closed.set()
        self._failures = 0
        self._pause_s = first_pause_s
        self._line = asyncio.Lock()

    async def available(self) -> None:
        """Wait until it is closed."""
        await self._closed.wait()

    async def call(self, action: Callable[[], Awaitable[T]]) -> T:
        """Make the call as soon as that is allowed; raises what it raises."""
        if self._closed.is_set():
            return await self._observe(action)
        async with self._line:  # first come, first served: a probe that failed goes to the end
            if not self._closed.is_set():
                return await self._probe(action)
        return await self.call(action)

    async def prove(self, action: Callable[[], Awaitable[T]]) -> bool:
        """Make a call at once, whatever the state; True if the service answered."""
        try:
            await self._observe(action)
        except (Unavailable, Rejected):
            return False
        return True

    async def _probe(self, action: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return await self._observe(action)

    async def _observe(self, action: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await action()
        except Unavailable as error:
            await self._failed(str(error))
            raise
        except Rejected:
            await self._answered()
            raise
        await self._answered()
        return result

    async def _answered(self) -> None:
        self._failures = 0
        self._pause_s = self._first_pause_s
        if not self._closed.is_set():
            self._closed.set()
            await self._on_change(True, "")

    async def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._closed.is_set() and self._failures >= FAILURES_TO_OPEN:
            self._closed.clear()
            await self._on_change(False, reason)
