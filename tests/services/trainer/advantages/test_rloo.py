"""Leave-one-out advantages against the formula, written down sample by sample in float64."""

import numpy as np
import torch

from services.trainer.advantages.group_baseline import group_baseline
from services.trainer.advantages.rloo import rloo
from tests.services.trainer.advantages.by_attempt import others_of
from tests.services.trainer.ragged import ragged, rewards_of


def test_the_baseline_is_the_mean_of_the_other_attempts() -> None:
    for seed in range(20):
        samples = ragged(seed).samples
        expected: list[float] = []
        for row, reward in enumerate(samples.reward.tolist()):
            own, attempts = others_of(samples, row)
            attempts.remove(own)
            expected.append(reward - float(np.mean(attempts)) if attempts else 0.0)
        np.testing.assert_allclose(rloo(samples).tolist(), expected, rtol=1e-9, atol=1e-12)


def test_without_siblings_it_is_the_group_baseline_times_n_over_n_minus_one() -> None:
    samples = rewards_of([1.0, 0.0, 0.0, 1.0, 5.0], [0, 0, 0, 0, 1])
    torch.testing.assert_close(rloo(samples), group_baseline(samples) * 4 / 3)


def test_equal_rewards_and_lone_attempts_give_exactly_zero() -> None:
    assert rloo(rewards_of([0.1] * 7 + [4.0], [0] * 7 + [1])).tolist() == [0.0] * 8
