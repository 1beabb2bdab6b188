"""What a place for metrics has to do."""

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """Takes the committed steps of one run, in order, each once."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """May take seconds; what it raises is logged, and the step is not written again."""
        ...

    def close(self) -> None: ...
