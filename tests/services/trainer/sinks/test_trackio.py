"""A real trackio database on this machine."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from services.trainer.sinks.choose_sinks import is_installed
from services.trainer.sinks.position import PositionFile
from services.trainer.sinks.trackio import NAME, Trackio
from tests.services.trainer.sinks.rows import place, rows

pytestmark = pytest.mark.skipif(not is_installed("trackio"), reason="trackio is not installed")


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield importlib.import_module("trackio.sqlite_storage").SQLiteStorage


def shown(database: Any, name: str) -> list[tuple[int, float]]:
    return [(one["step"], one["loss"]) for one in database.get_logs("sluice-tests", name)]


def test_rows_are_there_when_write_returns_and_a_new_trainer_goes_on(tmp_path: Path, database: Any) -> None:
    sink = Trackio(place(tmp_path, "goes_on"), 0)
    sink.write(rows(1, 2))
    assert shown(database, "goes_on") == [(1, 1.0), (2, 0.5)]
    again = Trackio(place(tmp_path, "goes_on"), 9)
    assert again.last == 2
    again.write(rows(3, 3))
    assert [step for step, _ in shown(database, "goes_on")] == [1, 2, 3]


def test_a_row_that_a_killed_trainer_did_not_note_is_not_written_again(tmp_path: Path, database: Any) -> None:
    Trackio(place(tmp_path, "killed"), 0).write(rows(1, 3))
    file = PositionFile(tmp_path, NAME)
    noted = file.read()
    file.write(type(noted)(1, noted.life, True))
    assert Trackio(place(tmp_path, "killed"), 9).last == 3


def test_after_redis_has_lost_steps_a_new_run_has_all_rows(tmp_path: Path, database: Any) -> None:
    Trackio(place(tmp_path, "lost"), 0).write(rows(1, 5))
    rewound = Trackio(place(tmp_path, "lost"), 2)
    assert rewound.last == 0
    rewound.write(rows(1, 3, loss=30.0))
    assert shown(database, "lost-2") == [(1, 30.0), (2, 15.0), (3, 10.0)]
    assert len(shown(database, "lost")) == 5


def test_a_run_of_another_owner_has_rows_of_its_own(tmp_path: Path, database: Any) -> None:
    Trackio(place(tmp_path / "old", "same"), 0).write(rows(1, 4))
    new = Trackio(place(tmp_path / "new", "same"), 0)
    new.write(rows(1, 1, loss=7.0))
    assert Trackio(place(tmp_path / "new", "same"), 1).last == 1
