"""Token weights against the means that they stand for, written down attempt by attempt."""

import numpy as np
import pytest
import torch

from services.trainer.losses.token_weights import Aggregation, token_weights
from tests.services.trainer.ragged import Ragged, ragged, rewards_of


def weighted(batch: Ragged, values: np.ndarray, aggregation: Aggregation) -> float:
    weights = token_weights(batch.mask, batch.sample, batch.samples, aggregation, 50)
    return float((weights.double().numpy() * values).sum())


def by_attempt(batch: Ragged, values: np.ndarray) -> list[np.ndarray]:
    """The values of each attempt's trained tokens, over all its samples."""
    mask, attempt = batch.mask.numpy(), batch.samples.attempt[batch.sample].numpy()
    own = [values[mask & (attempt == one)] for one in np.unique(attempt)]
    return [part for part in own if len(part)]


def test_token_is_the_mean_over_all_trained_tokens() -> None:
    batch = ragged(1)
    values = batch.column(1).numpy()
    expected = np.concatenate(by_attempt(batch, values)).mean()
    assert weighted(batch, values, "token") == pytest.approx(expected, rel=1e-6)


def test_rollout_is_the_mean_over_attempts_of_the_mean_over_all_their_siblings_tokens() -> None:
    for seed in range(10):
        batch = ragged(seed)
        values = batch.column(2).numpy()
        expected = np.mean([part.mean() for part in by_attempt(batch, values)])
        assert weighted(batch, values, "rollout") == pytest.approx(expected, rel=1e-5)


def test_constant_is_the_sum_by_a_length_that_is_the_same_for_all() -> None:
    batch = ragged(3)
    values = batch.column(3).numpy()
    expected = np.mean([part.sum() / 50 for part in by_attempt(batch, values)])
    assert weighted(batch, values, "constant") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "rollout", "constant"])
def test_a_rank_with_some_of_the_samples_gives_its_tokens_the_same_weights(aggregation: Aggregation) -> None:
    batch = ragged(4)
    whole = token_weights(batch.mask, batch.sample, batch.samples, aggregation, 50)
    own = batch.sample % 3 == 1
    part = token_weights(batch.mask[own], batch.sample[own], batch.samples, aggregation, 50)
    assert torch.equal(part, whole[own])


@pytest.mark.parametrize("aggregation", ["token", "rollout", "constant"])
def test_a_step_without_trained_tokens_weighs_nothing(aggregation: Aggregation) -> None:
    samples = rewards_of([1.0, 0.0], [0, 0])
    samples.trained.zero_()
    row = torch.tensor([0, 0, 1])
    assert token_weights(torch.zeros(3, dtype=torch.bool), row, samples, aggregation, 50).tolist() == [0.0] * 3
