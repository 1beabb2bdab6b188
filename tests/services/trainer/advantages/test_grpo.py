"""GRPO advantages against the formula, written down group by group in float64."""

import numpy as np
import torch

from services.trainer.advantages.grpo import grpo_advantages


def reference(rewards: np.ndarray, group: np.ndarray, normalize_std: bool) -> np.ndarray:
    advantages = np.zeros_like(rewards)
    for one in np.unique(group):
        own = rewards[group == one]
        if len(set(own.tolist())) == 1:
            continue
        centred = own - own.mean()
        advantages[group == one] = centred / (own.std(ddof=1) + 1e-6) if normalize_std else centred
    return advantages


def check(rewards: np.ndarray, group: np.ndarray) -> None:
    for normalize_std in (True, False):
        ours = grpo_advantages(torch.from_numpy(rewards), torch.from_numpy(group), normalize_std)
        np.testing.assert_allclose(ours.numpy(), reference(rewards, group, normalize_std), rtol=1e-12, atol=1e-12)


def test_uneven_groups_in_any_order_follow_the_formula() -> None:
    random = np.random.default_rng(0)
    group = random.permutation(np.repeat(np.arange(9), random.integers(1, 12, 9)))
    check(random.normal(size=len(group)), group)
    check(random.integers(0, 2, len(group)).astype(float), group)


def test_equal_rewards_that_do_not_add_up_exactly_still_give_zero() -> None:
    rewards, group = torch.full((7,), 0.1, dtype=torch.float64), torch.zeros(7, dtype=torch.int64)
    assert grpo_advantages(rewards, group, True).tolist() == [0.0] * 7


def test_a_group_of_one_attempt_has_no_advantage() -> None:
    rewards, group = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1, 0, 0])
    assert grpo_advantages(rewards, group, False).tolist() == [0.0, 0.5, -0.5]
