"""What a place for metrics has to do, and what it is told of the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """One committed step."""

    step: int
    metrics: Mapping[str, float]


class Sink(Protocol):
    """Takes the committed steps of one run, in order, each once. All calls come from one thread and may block."""

    @property
    def last(self) -> int:
        """The step up to which it has every row; the next row is that of the step after it."""
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Rows that follow `last`. What it raises is told, and rows after `last`, read anew, are given again."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Of which run the metrics are, and where they go."""

    folder: Path
    """For the run's metrics alone; files of an earlier run of the same name are not in it."""
    run: str
    owner: str
    """By which the run differs from others that have, or had, its name."""
    project: str
    name: str
    """Of the run, as services for metrics show it."""
    config: Mapping[str, Any]


OpenSink = Callable[[Place, int], Sink]
"""(place, newest committed step) -> the sink as an earlier trainer left it, but for rows of later steps."""
