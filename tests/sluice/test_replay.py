"""`sluice replay` on a run that was really trained: its table, its JSON, its exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from sluice.cli import replay as replay_file
from tests.services.trainer.test_replay import recorded
from tests.sluice.conftest import Sluice


@pytest.fixture
async def trained(
    redis: Redis, redis_url: str, sluice: Sluice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Sluice:
    """`sluice` in a deployment whose run r1 has done four steps."""
    await recorded(redis, tmp_path, kind="sft")
    monkeypatch.setenv("SLUICE_PATHS__HOME", str(tmp_path))
    monkeypatch.setenv("SLUICE_REDIS__URL", redis_url)
    return sluice


@pytest.mark.slow
async def test_equal_steps_and_what_cannot_be_replayed(trained: Sluice) -> None:
    same = trained("replay", "r1", "--from", "3")
    assert same.code == 0, same.err
    assert "steps 3 to 4 of run r1 came out as recorded, bit for bit" in same.out
    gone = trained("replay", "r1", "--from", "1")
    assert (gone.code, gone.out) == (1, "")
    assert "error: step 1 of run r1 trained 3 groups" in gone.err
    assert "set trainer.archive = true" in gone.err
    assert "Traceback" not in gone.err


def step(number: int, *differs: str) -> dict[str, Any]:
    check = {"against": "checkpoint", "equal": not differs, "tensors": 9, "different": [], "largest_difference": 0.25}
    pair = [1.0, 2.0 if differs else 1.0]
    metrics = {"loss": pair, "grad_norm": pair}
    equal = not differs
    return {
        "step": number, "source": "redis", "metrics": metrics, "differs": list(differs), "weights": [check],
        "not_compared": [], "equal": equal,
    }  # fmt: skip


def test_a_difference_is_exit_code_1_unless_it_was_asked_for(
    sluice: Sluice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".sluice" / "runs" / "r1").mkdir(parents=True)
    given: list[list[str]] = []

    def lines(arguments: list[str], environment: dict[str, str]) -> Iterator[dict[str, Any]]:
        assert environment["SLUICE_REDIS__URL"].startswith('"redis://')
        given.append(arguments)
        yield from (step(3), step(4, "loss"))
        yield {"run": "r1", "from": 3, "to": 4, "equal": False, "weight_checks": 2}

    monkeypatch.setattr(replay_file, "_lines", lines)
    different = sluice("replay", "r1", "--from", "3", "--to", "4")
    assert different.code == 1
    assert "checkpoint: differ by up to 0.25" in different.out
    assert "differ from what was recorded, first at step 4" in different.out
    what_if = sluice("replay", "r1", "--from", "3", "--set", "trainer.learning_rate=0.01", "--json")
    assert what_if.code == 0
    assert [one["step"] for one in json.loads(what_if.out)["steps"]] == [3, 4]
    assert given[0] == ["r1", "--from", "3", "--to", "4"]
    assert given[1] == ["r1", "--from", "3", "--set", "trainer.learning_rate=0.01"]


def test_a_run_without_a_folder_here_is_one_sentence(sluice: Sluice, tmp_path: Path) -> None:
    outcome = sluice("replay", "r9", "--from", "1")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: there is no folder")
    assert not (tmp_path / ".sluice").exists()


@pytest.mark.parametrize("name", ["", ".."])
def test_a_folder_that_no_run_can_have_is_none(sluice: Sluice, tmp_path: Path, name: str) -> None:
    (tmp_path / ".sluice" / "runs").mkdir(parents=True)
    assert sluice("replay", name, "--from", "1").err.startswith("error: there is no folder")
