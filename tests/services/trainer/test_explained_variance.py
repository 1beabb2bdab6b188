"""How much of the returns a critic knew, against numpy, and summed over ranks."""

import numpy as np
import pytest
import torch

from services.trainer.explained_variance import explained_variance


def explained(returns: list[float], values: list[float]) -> float:
    found = explained_variance(torch.tensor(returns), torch.tensor(values), lambda sums: sums)
    return found["value_explained_variance"]


def test_a_critic_that_tells_the_returns_explains_all_and_one_that_tells_their_mean_nothing() -> None:
    returns = [1.0, 0.0, 0.5, 2.0]
    assert explained(returns, returns) == 1
    assert explained(returns, [0.875] * 4) == pytest.approx(0)
    assert explained(returns, [-value for value in returns]) == pytest.approx(-3)


def test_equal_returns_leave_nothing_to_explain() -> None:
    assert explained([1.0, 1.0], [0.3, 0.4]) == 0
    assert explained([], []) == 0


def test_two_ranks_find_what_one_rank_finds() -> None:
    random = np.random.default_rng(0)
    returns, noise = torch.from_numpy(random.normal(3, 1, (2, 50)))
    other = torch.stack([returns, -noise])[:, 20:]
    centre = torch.stack([returns.mean(), -noise.mean()])[:, None]
    of_the_other = iter([torch.cat([other.sum(1), other.new_tensor([30])]), (other - centre).square().sum(1)])
    found = explained_variance(returns[:20], (returns + noise)[:20], lambda own: own + next(of_the_other))
    assert found["value_explained_variance"] == pytest.approx(1 - float(noise.var() / returns.var()))
