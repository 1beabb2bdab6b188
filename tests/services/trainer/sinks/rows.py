"""Rows of a run that never was, and the place that they go to."""

from pathlib import Path

from services.trainer.sinks.sink import Place, Row


def place(folder: Path, name: str = "r1") -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, name, "1700000000.123456", "sluice-tests", name, {"seed": 3, "trainer": {"steps": 9}})


def rows(first: int, last: int, loss: float = 1.0) -> list[Row]:
    return [Row(step, {"loss": loss / step, "tokens": 100.0 + step}) for step in range(first, last + 1)]
