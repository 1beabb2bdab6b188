"""How far the rows of a sink have come, in a small file beside them: what a new trainer goes on from."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Position:
    """A run there that cannot take back what it has is left when Redis has lost steps; the next one has all rows."""

    step: int = 0
    life: int = 1
    """Which of these runs it is."""
    has_begun: bool = False


class PositionFile:
    """The position of one sink; a write is whole or has not happened."""

    def __init__(self, folder: Path, sink: str) -> None:
        self._path = folder / f"{sink}.json"

    def read(self) -> Position:
        """The beginning where there is no file."""
        return Position(**json.loads(self._path.read_text("utf-8"))) if self._path.exists() else Position()

    def write(self, position: Position) -> None:
        aside = self._path.with_name(f".writing_{self._path.name}")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(asdict(position), file)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(self._path)

    def in_life(self, newest: int) -> Position:
        """Where a service goes on that keeps what it has: in a new life if it has rows after `newest`."""
        found = self.read()
        return found if found.step <= newest else Position(life=found.life + 1)
