"""Rewards minus the mean attempt of the group."""

import numpy as np

from services.trainer.advantages.group_baseline import group_baseline
from tests.services.trainer.advantages.by_attempt import others_of
from tests.services.trainer.ragged import ragged, rewards_of


def test_every_attempt_counts_once_in_the_mean() -> None:
    for seed in range(20):
        samples = ragged(seed).samples
        expected: list[float] = []
        for row, reward in enumerate(samples.reward.tolist()):
            _, attempts = others_of(samples, row)
            expected.append(reward - float(np.mean(attempts)) if len(attempts) > 1 else 0.0)
        np.testing.assert_allclose(group_baseline(samples).tolist(), expected, rtol=1e-12, atol=1e-12)


def test_a_group_of_one_attempt_has_no_advantage_even_where_its_siblings_differ() -> None:
    samples = rewards_of([3.0, 1.0, 1.0, 0.0], [1, 1, 0, 0], attempt=[0, 0, 1, 2])
    assert group_baseline(samples).tolist() == [0.0, 0.0, 0.5, -0.5]
