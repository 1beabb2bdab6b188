"""Token weights against both means, written down attempt by attempt."""

import numpy as np
import pytest
import torch

from services.trainer.losses.token_weights import token_weights

MASK = [0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1]
ATTEMPT = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
"""Attempt 1 has no trained token."""


def weighted(values: np.ndarray, aggregation: str) -> float:
    mask = torch.tensor(MASK, dtype=torch.bool)
    weights = token_weights(mask, torch.tensor(ATTEMPT), aggregation)  # pyright: ignore[reportArgumentType]
    return float((weights.numpy() * values).sum())


def test_token_is_the_mean_over_all_trained_tokens() -> None:
    values = np.random.default_rng(0).normal(size=len(MASK))
    assert weighted(values, "token") == pytest.approx(values[np.asarray(MASK) == 1].mean(), rel=1e-6)


def test_rollout_is_the_mean_over_attempts_of_their_means() -> None:
    values = np.random.default_rng(0).normal(size=len(MASK))
    mask, attempt = np.asarray(MASK) == 1, np.asarray(ATTEMPT)
    means = [values[mask & (attempt == a)].mean() for a in (0, 2, 3)]
    assert weighted(values, "rollout") == pytest.approx(np.mean(means), rel=1e-6)


def test_a_step_without_trained_tokens_weighs_nothing() -> None:
    mask, attempt = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    assert (
        token_weights(mask, attempt, "token").tolist() == token_weights(mask, attempt, "rollout").tolist() == [0.0] * 3
    )
