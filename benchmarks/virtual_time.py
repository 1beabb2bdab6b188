"""Things that will happen -> things that happened, in their order, on a clock that jumps instead of waiting."""

import heapq
from collections.abc import Awaitable, Callable
from itertools import count

Action = Callable[[], Awaitable[None]]


class NothingHappens(RuntimeError):
    """Somebody waits, and nothing is left that could end it."""


class VirtualTime:
    """Seconds since the start; actions of the same moment run in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._plans: list[tuple[float, int, Action]] = []
        self._number = count()

    def plan(self, delay_s: float, action: Action) -> None:
        """Run the action `delay_s` seconds from now."""
        heapq.heappush(self._plans, (self.now + delay_s, next(self._number), action))

    async def advance(self, until: float) -> bool:
        """Run the next action, if it is due by `until`; else go to `until`, and return False."""
        if not self._plans or self._plans[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, action = heapq.heappop(self._plans)
        await action()
        return True

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass, with everything that happens in them."""
        until = self.now + seconds
        while await self.advance(until):
            pass

    @property
    def is_over(self) -> bool:
        """Nothing is planned any more."""
        return not self._plans
