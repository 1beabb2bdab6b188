"""Deaths of an engine -> how long to wait before the next start, or the end of patience."""

import time
from collections import deque
from collections.abc import Callable

from shared.errors import SluiceError

WINDOW_S = 600.0
MOST = 5
"""Restarts within the window of an engine that never served; it will not get better by itself."""
FIRST_DELAY_S = 0.5


class EngineLost(SluiceError):
    """The engine died too often before it could serve; the sidecar ends with this reason."""


class Restarts:
    """The restarts of the last ten minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """Seconds to wait before the next start: 0.5, 1, 2, ...; EngineLost if there were too many.

        `served`: it had come to serve when it died. Whatever killed it, it can start here, so the count begins anew.
        """
        now = self._clock()
        if served:
            self._times.clear()
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        if len(self._times) >= MOST:
            raise EngineLost(f"the engine died {MOST + 1} times within {WINDOW_S / 60:g} minutes; last: {reason}")
        self._times.append(now)
        return FIRST_DELAY_S * 2 ** (len(self._times) - 1)
