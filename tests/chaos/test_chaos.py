"""Services and Redis are killed while a real stack trains: nothing is lost, nothing trains twice, the run ends."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.__main__ import chaos, parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def bout(home: Path, *arguments: str) -> dict[str, Any]:
    given: argparse.Namespace = parse([*arguments, "--home", str(home)])
    return chaos(given, home)


def assert_perfect(verdict: dict[str, Any]) -> None:
    assert verdict["problems"] == []
    assert (verdict["groups_lost"], verdict["groups_trained_twice"], verdict["balanced"]) == (0, 0, True)
    assert verdict["steps_done"] == verdict["steps_asked"] > 0
    assert verdict["kills"] == verdict["kills_asked"]
    assert verdict["perfect"]


def test_six_kills_with_redis_and_the_trainer_among_them_lose_nothing(tmp_path: Path) -> None:
    verdict = bout(tmp_path, "--variant", "fast", "--kills", "6", "--seed", "12", "--steps", "16")
    assert_perfect(verdict)
    assert verdict["kills_by_target"]["redis"] >= 1
    assert verdict["kills_by_target"]["trainer"] >= 1


def test_three_kills_around_a_real_engine_lose_nothing(tmp_path: Path) -> None:
    verdict = bout(tmp_path, "--variant", "real", "--kills", "3", "--seed", "25", "--steps", "60")
    assert_perfect(verdict)
