"""The demo's beginning and its interruption; a whole demo is what `make demo` runs."""

from pathlib import Path

import pytest

from sluice.demo import command
from tests.sluice.conftest import Sluice


@pytest.fixture
def interrupted_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the services start."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_make_model", lambda folder, seed: folder)
    monkeypatch.setattr(command, "write_rows", lambda *_: {})
    monkeypatch.setattr(command, "start_detached", interrupt)


@pytest.mark.usefixtures("interrupted_at_start")
def test_ctrl_c_says_what_was_stopped_and_how_to_go_on(sluice: Sluice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "stop", lambda home: "stopped")
    outcome = sluice("demo", "--home", "here", "--set", "gateway.port=8555")
    assert outcome.code == 130
    assert "interrupted; all services were stopped" in outcome.err
    assert "export SLUICE_PATHS__HOME=here; sluice up -d --set gateway.port=8555" in outcome.err
    assert "`sluice demo` begins anew, and replaces here" in outcome.err


@pytest.mark.usefixtures("interrupted_at_start")
def test_ctrl_c_before_anything_runs_stops_nothing(sluice: Sluice) -> None:
    outcome = sluice("demo", "--home", "here")
    assert outcome.code == 130
    assert "interrupted; no service ran" in outcome.err
    assert "sluice up" not in outcome.err


def test_a_wrong_setting_of_the_second_run_is_told_before_the_first_one(sluice: Sluice, tmp_path: Path) -> None:
    outcome = sluice("demo", "--home", "here", "--run-set", "trainer.stepz=3")
    assert outcome.code == 1
    assert "--run-set: trainer.stepz is not a setting; did you mean trainer.steps?" in outcome.err
    assert not (tmp_path / "here").exists()
