"""Steps -> metrics.jsonl in the run's folder: one line a step, readable while the run goes on."""

import json
from collections.abc import Mapping
from pathlib import Path

NAME = "metrics.jsonl"


class JsonLines:
    """Appends `{"step": 1, "loss": ...}` lines; the last one says where a new trainer goes on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.last_step = _last_step(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _last_step(path: Path) -> int:
    """0 for a new file. A line that a kill cut off is removed."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        path.write_bytes(b"".join(whole))
    return int(json.loads(whole[-1])["step"]) if whole else 0
