"""Discounted returns over trained tokens against a loop."""

import numpy as np
import pytest

from services.trainer.advantages.reinforce_plus_plus import reinforce_plus_plus
from services.trainer.advantages.token_rewards import kl_penalty, token_rewards
from tests.services.trainer.ragged import ragged


@pytest.mark.parametrize("gamma", [1.0, 0.95])
def test_returns_skip_masked_tokens(gamma: float) -> None:
    batch = ragged(6)
    kl = batch.column(3, 0.1)
    expected = np.zeros(len(kl))
    for row, trained in batch.rows():
        following = 0.0
        for place, t in reversed(list(enumerate(trained))):
            last = batch.samples.reward[row].item() if place == len(trained) - 1 else 0.0
            expected[t] = following = last - 0.2 * kl[t].item() + gamma * following
    rewards = token_rewards(batch.samples.reward, kl_penalty(kl, batch.mask, 0.2), batch.mask, batch.sample)
    ours = reinforce_plus_plus(rewards, batch.mask, batch.sample, gamma)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-13)
