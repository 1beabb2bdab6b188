"""Deaths of an engine -> how long to wait before the next start, or whose fault they are."""

import time
from collections import deque
from collections.abc import Callable

from shared.errors import RunRejected, SluiceError

WINDOW_S = 600.0
MOST = 5
"""Restarts within the window of an engine that never served; it will not get better by itself."""
START_TRIES = 3
"""Starts that may fail before the run does; an engine that was killed while it started is no fault of the run."""
FIRST_DELAY_S = 0.5


class EngineLost(SluiceError):
    """The engine died too often before it could serve; the sidecar ends with this reason."""


class Restarts:
    """The restarts of the last ten minutes, or all of them while a run starts."""

    def __init__(self, starting: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """`starting`: the run has not run yet, so it may be its settings with which no engine can start."""
        self._starting, self._clock = starting, clock
        self._times: deque[float] = deque()

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """Seconds to wait before the next start: 0.5, 1, 2, ...

        Args:
            served: it had come to serve when it died. Whatever killed it, it can start here: the count begins anew.

        Raises:
            RunRejected: the run is starting, and its engine failed to start too often.
            EngineLost: an engine that was able to start once died too often.
        """
        now = self._clock()
        if served:
            self._starting = False
            self._times.clear()
        if self._starting and len(self._times) >= START_TRIES - 1:
            raise RunRejected(reason)
        while not self._starting and self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        if len(self._times) >= MOST:
            raise EngineLost(f"the engine died {MOST + 1} times within {WINDOW_S / 60:g} minutes; last: {reason}")
        self._times.append(now)
        return FIRST_DELAY_S * 2 ** (len(self._times) - 1)
