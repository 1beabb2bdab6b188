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
        spread = deviation(samples, row, float(np.mean(attempts)), len(attempts))
        if len(attempts) == 1 or spread < 1e-9:
            advantages.append(0.0)
            continue
        spread = spread + 1e-6 if normalize_std else 1.0
        advantages.append((reward - float(np.mean(attempts))) / spread)
    return advantages


def deviation(samples: Samples, row: int, mean: float, attempts: int) -> float:
    """Of the rewards in a sample's group, every attempt shared out evenly among its samples."""
    reward, group, attempt = samples.reward.tolist(), samples.group.tolist(), samples.attempt.tolist()
    members = [i for i in range(len(reward)) if group[i] == group[row]]
    squares = [(reward[i] - mean) ** 2 / attempt.count(attempt[i]) for i in members]
    return float(np.sqrt(sum(squares) / max(attempts - 1, 1)))


@pytest.mark.parametrize("whole_rewards", [False, True])
@pytest.mark.parametrize("normalize_std", [False, True])
def test_uneven_groups_with_siblings_in_any_order_follow_the_formula(normalize_std: bool, whole_rewards: bool) -> None:
    for seed in range(20):
        samples = ragged(seed, whole_rewards=whole_rewards).samples
        ours = grpo(samples, normalize_std).tolist()
        np.testing.assert_allclose(ours, reference(samples, normalize_std), rtol=1e-9, atol=1e-12)


def test_equal_rewards_that_do_not_add_up_exactly_still_give_zero() -> None:
    assert grpo(rewards_of([0.1] * 7, [0] * 7)).tolist() == [0.0] * 7


@pytest.mark.parametrize("other", [0.5, 0.5 + 1e-9, 0.501])
def test_siblings_that_differ_keep_their_scale_where_attempts_hardly_do(other: float) -> None:
    samples = rewards_of([1.0, 0.0, other], [0] * 3, attempt=[0, 0, 1])
    np.testing.assert_allclose(grpo(samples), [1.0, -1.0, 0.0], atol=0.01)


def test_an_all_right_and_an_all_wrong_group_stay_zero_when_one_has_a_sibling_more() -> None:
    samples = rewards_of([1.0] * 5 + [0.0] * 4, [0] * 5 + [1] * 4, attempt=[0, 0, 1, 2, 3, 4, 5, 6, 7])
    assert grpo(samples).tolist() == [0.0] * 9


def test_a_sibling_changes_nothing_for_other_attempts() -> None:
    alone = grpo(rewards_of([1.0, 0.0, 0.5], [0, 0, 0])).tolist()
    with_sibling = grpo(rewards_of([1.0, 1.0, 0.0, 0.5], [0] * 4, attempt=[0, 0, 1, 2])).tolist()
    assert with_sibling == pytest.approx([alone[0], *alone])


def test_a_step_without_samples_has_no_advantages() -> None:
    assert grpo(rewards_of([], [])).tolist() == []
