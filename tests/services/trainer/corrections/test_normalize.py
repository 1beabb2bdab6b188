"""Weights with mean 1 over the step."""

import pytest
import torch

from services.trainer.corrections.normalize import normalize


def test_kept_tokens_of_all_ranks_have_mean_one_and_rejected_ones_stay_at_zero() -> None:
    ranks = [torch.tensor([0.5, 0.0, 1.5]), torch.tensor([4.0]), torch.zeros(0)]
    whole = torch.tensor([6.0, 3.0], dtype=torch.float64)
    told: list[list[float]] = []

    def reduce(own: torch.Tensor) -> torch.Tensor:
        told.append(own.tolist())
        return whole

    normalized = torch.cat([normalize(weight, reduce) for weight in ranks])
    assert normalized.tolist() == [0.25, 0.0, 0.75, 2.0]
    assert normalized[normalized > 0].mean().item() == pytest.approx(1)
    assert [sum(column) for column in zip(*told, strict=True)] == whole.tolist()


def test_a_step_that_rejects_all_tokens_stays_zero() -> None:
    assert normalize(torch.zeros(3), lambda own: own).tolist() == [0.0, 0.0, 0.0]
