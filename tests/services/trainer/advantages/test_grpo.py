"""GRPO advantages against the formula, written down sample by sample in float64."""

import numpy as np
import pytest

from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.samples import Samples
from tests.services.trainer.advantages.by_attempt import others_of
from tests.services.trainer.ragged import ragged, rewards_of


def reference(samples: Samples, normalize_std: bool) -> list[float]:
    advantages: list[float] = []
    for row, reward in enumerate(samples.reward.tolist()):
        _, attempts = others_of(samples, row)
        if len(attempts) == 1 or (normalize_std and np.ptp(attempts) < 1e-9):
            advantages.append(0.0)
            continue
        spread = float(np.std(attempts, ddof=1)) + 1e-6 if normalize_std else 1.0
        advantages.append((reward - float(np.mean(attempts))) / spread)
    return advantages


@pytest.mark.parametrize("whole_rewards", [False, True])
@pytest.mark.parametrize("normalize_std", [False, True])
def test_uneven_groups_with_siblings_in_any_order_follow_the_formula(normalize_std: bool, whole_rewards: bool) -> None:
    for seed in range(20):
        samples = ragged(seed, whole_rewards=whole_rewards).samples
        ours = grpo(samples, normalize_std).tolist()
        np.testing.assert_allclose(ours, reference(samples, normalize_std), rtol=1e-9, atol=1e-12)


def test_equal_rewards_that_do_not_add_up_exactly_still_give_zero() -> None:
    assert grpo(rewards_of([0.1] * 7, [0] * 7)).tolist() == [0.0] * 7


def test_attempts_that_are_equal_after_their_siblings_are_averaged_have_no_scale_to_divide_by() -> None:
    samples = rewards_of([0.1, 0.2, 0.15, 0.15], [0] * 4, attempt=[0, 0, 1, 2])
    assert grpo(samples).tolist() == [0.0] * 4


def test_an_all_right_and_an_all_wrong_group_stay_zero_when_one_has_a_sibling_more() -> None:
    samples = rewards_of([1.0] * 5 + [0.0] * 4, [0] * 5 + [1] * 4, attempt=[0, 0, 1, 2, 3, 4, 5, 6, 7])
    assert grpo(samples).tolist() == [0.0] * 9


def test_a_sibling_changes_nothing_for_other_attempts() -> None:
    alone = grpo(rewards_of([1.0, 0.0, 0.5], [0, 0, 0])).tolist()
    with_sibling = grpo(rewards_of([1.0, 1.0, 0.0, 0.5], [0] * 4, attempt=[0, 0, 1, 2])).tolist()
    assert with_sibling == pytest.approx([alone[0], *alone])


def test_a_step_without_samples_has_no_advantages() -> None:
    assert grpo(rewards_of([], [])).tolist() == []
