"""Marks between the phases of the loop -> the seconds of each phase of a step; none is left out or told twice."""

import time
from collections.abc import Callable
from typing import Literal

Phase = Literal["publish", "checkpoint", "wait", "fetch", "memory", "train"]
PHASES: tuple[Phase, ...] = ("publish", "checkpoint", "wait", "fetch", "memory", "train")
"""In their order within a step: the first two belong to the step before, and are over when this one begins."""


def _nothing() -> dict[str, float]:
    return {**dict.fromkeys(PHASES, 0.0)}


class StepClock:
    """The time since the last mark belongs to the phase that the next mark names."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._mark = now, now()
        self._seconds: dict[str, float] = _nothing()

    def lap(self, phase: Phase) -> None:
        """The phase has just ended."""
        now = self._now()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """`seconds_` of every phase and `seconds_total`, their sum; the next step begins at the last mark."""
        taken, self._seconds = self._seconds, _nothing()
        return {**{f"seconds_{name}": value for name, value in taken.items()}, "seconds_total": sum(taken.values())}
