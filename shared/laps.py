"""Work in phases -> the seconds that each took."""

import time


class Laps:
    """Seconds by phase, added to those that are there: each call ends a phase."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def __call__(self, phase: str) -> None:
        self.move(phase, time.monotonic() - self._last)

    def move(self, phase: str, seconds: float) -> None:
        """A phase took so much of the time since the last one."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self._last += seconds
