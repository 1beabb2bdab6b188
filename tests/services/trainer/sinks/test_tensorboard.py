"""Real event files, read back by TensorBoard's own reader."""

from pathlib import Path
from typing import Any

import pytest

from services.trainer.sinks.tensorboard import NAME, TensorBoard
from tests.services.trainer.sinks.rows import place, rows

pytest.importorskip("tensorboard")


def shown(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader: Any = EventAccumulator(str(folder / NAME), size_guidance={"scalars": 0})
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_scalars_are_shown_by_step(tmp_path: Path) -> None:
    sink = TensorBoard(place(tmp_path), 0)
    sink.write(rows(1, 3))
    sink.close()
    assert shown(tmp_path) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert shown(tmp_path, "tokens") == [(1, 101.0), (2, 102.0), (3, 103.0)]


def test_a_row_that_a_killed_trainer_wrote_and_did_not_note_is_shown_once(tmp_path: Path) -> None:
    killed = TensorBoard(place(tmp_path), 0)
    killed.write(rows(1, 2))
    noted = (tmp_path / f"{NAME}.json").read_bytes()
    killed.write(rows(3, 3))
    (tmp_path / f"{NAME}.json").write_bytes(noted)
    again = TensorBoard(place(tmp_path), 9)
    assert again.last == 2
    again.write(rows(3, 4))
    again.close()
    assert [step for step, _ in shown(tmp_path)] == [1, 2, 3, 4]


def test_steps_that_redis_lost_are_shown_as_they_were_trained_in_the_end(tmp_path: Path) -> None:
    before = TensorBoard(place(tmp_path), 0)
    before.write(rows(1, 5))
    before.close()
    rewound = TensorBoard(place(tmp_path), 2)
    rewound.write(rows(3, 3, loss=30.0))
    rewound.close()
    assert shown(tmp_path) == [(1, 1.0), (2, 0.5), (3, 10.0)]
