"""Steps -> steps.jsonl in the run's folder: one line a step, readable while the run goes on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from services.trainer.sinks.sink import Place, Row

NAME = "steps.jsonl"


class JsonLines:
    """Appends `{"step": 1, "loss": ...}` lines; the file itself says how far it has come."""

    def __init__(self, place: Place, newest: int) -> None:
        self._path = place.folder / NAME
        self.last = _cut(self._path, newest)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        """See Sink."""
        self._file.writelines(json.dumps({"step": row.step, **row.metrics}) + "\n" for row in rows)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.last = rows[-1].step

    def close(self) -> None:
        """See Sink."""
        self._file.close()


def _cut(path: Path, newest: int) -> int:
    """Remove a line that a kill cut off, and lines of steps after `newest`. Returns the last step; 0 for a new file."""
    if not path.exists():
        return 0
    size, step = 0, 0
    with path.open("rb") as file:
        for line in file:
            found = int(json.loads(line)["step"]) if line.endswith(b"\n") else newest + 1
            if found > newest:
                break
            size, step = size + len(line), found
    if size < path.stat().st_size:
        os.truncate(path, size)
    return step
