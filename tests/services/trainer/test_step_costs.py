"""What a step used of its devices; where their speed is unknown, nothing is said of it."""

import itertools

import pytest
import torch

from services.trainer import step_costs
from services.trainer.flops import TrainingFlops
from services.trainer.ranks import OneRank
from services.trainer.step_costs import StepCosts

FLOPS = TrainingFlops(matrices=1000, attention_width=10)


@pytest.fixture
def a_second_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(step_costs.time, "monotonic", lambda: float(next(seconds)))


def test_a_cpu_has_seconds_alone(a_second_a_call: None) -> None:
    costs = StepCosts(torch.device("cpu"), torch.bfloat16, OneRank(), FLOPS, 1)
    costs.begin()
    costs.lap("pack")
    costs.lap("estimates")
    costs.lap("update")
    assert costs.metrics([5]) == {"seconds_pack": 1.0, "seconds_estimates": 1.0, "seconds_update": 1.0}


def test_mfu_is_the_work_of_all_epochs_by_what_all_ranks_could_do(
    a_second_a_call: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_costs, "peak_flops", lambda device: 1e6)
    costs = StepCosts(torch.device("cpu"), torch.bfloat16, OneRank(0, 2), FLOPS, 3)
    costs.begin()
    costs.lap("update")
    work = 3 * (6 * 1000 * (5 + 7) + 6 * 10 * (25 + 49))
    assert costs.metrics([5, 7])["mfu"] == pytest.approx(work / (1e6 * 2 * 2.0))


def test_float32_is_not_held_against_the_speed_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_costs, "peak_flops", lambda device: 1e6)
    costs = StepCosts(torch.device("cpu"), torch.float32, OneRank(), FLOPS, 1)
    costs.begin()
    assert "mfu" not in costs.metrics([5])
