"""The API key: made once, shown once, readable by its owner alone."""

import stat
from pathlib import Path

import pytest

from services.gateway.api_key import find_api_key
from shared.errors import SluiceError


def test_the_key_is_made_and_shown_on_the_first_start_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = find_api_key(tmp_path / "home", "")
    assert key in capsys.readouterr().out
    assert find_api_key(tmp_path / "home", "") == key
    assert capsys.readouterr().out == ""
    files = list((tmp_path / "home").iterdir())
    assert [f.name for f in files] == ["api_key"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert len(key) >= 40


def test_a_configured_key_wins_and_is_not_stored(tmp_path: Path) -> None:
    assert find_api_key(tmp_path / "home", "my own") == "my own"
    assert not (tmp_path / "home").exists()


def test_an_empty_key_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "api_key").touch()
    with pytest.raises(SluiceError, match="is empty"):
        find_api_key(tmp_path, "")
