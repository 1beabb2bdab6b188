"""Generalized advantages and returns against the recursion, token by token in float64."""

import numpy as np
import pytest
import torch

from services.trainer.advantages.gae import gae
from tests.services.trainer.ragged import Ragged, ragged


def reference(batch: Ragged, rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> np.ndarray:
    advantages = np.zeros(len(rewards))
    for _, trained in batch.rows():
        following, next_value = 0.0, 0.0
        for t in reversed(trained):
            delta = rewards[t].item() + gamma * next_value - values[t].item()
            advantages[t] = following = delta + gamma * lam * following
            next_value = values[t].item()
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (1.0, 0.0), (0.0, 1.0)])
def test_advantages_and_returns_follow_the_recursion(gamma: float, lam: float) -> None:
    for seed in range(5):
        batch = ragged(seed)
        rewards, values = batch.column(1), batch.column(2)
        advantages, returns = gae(rewards, values, batch.mask, batch.sample, gamma, lam)
        expected = reference(batch, rewards, values, gamma, lam)
        np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-11, atol=1e-12)
        learned = np.where(batch.mask.numpy(), expected + values.numpy(), 0.0)
        np.testing.assert_allclose(returns.numpy(), learned, rtol=1e-11, atol=1e-12)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    mask, sample = torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 0, 1])
    advantages, returns = gae(torch.tensor([0.0, 0.0, 2.0, 5.0]), torch.tensor([2.0, 2, 2, 5]), mask, sample, 1.0, 0.9)
    assert advantages.tolist() == [0.0] * 4
    assert returns.tolist() == [2.0, 2.0, 2.0, 5.0]
