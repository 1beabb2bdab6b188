"""PPO's clipped objective and its gradient against the formula, token by token in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from services.trainer.losses.objective import TokenObjective
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.token_loss import TrainedTokens
from tests.services.trainer.losses.trained_columns import random_tokens

LOW, HIGH, DUAL = 0.2, 0.28, 1.5
clip = partial(ppo_clip, clip_low=LOW, clip_high=HIGH)


def objective(
    logprobs: torch.Tensor, tokens: TrainedTokens, dual_clip: float | None = None
) -> tuple[TokenObjective, np.ndarray]:
    inputs = logprobs.clone().requires_grad_()
    old = tokens.behaviour_logprobs
    found = ppo_clip(inputs, old, tokens.advantages, tokens.sample, clip_low=LOW, clip_high=HIGH, dual_clip=dual_clip)
    (gradient,) = torch.autograd.grad((found.loss * tokens.weights).sum(), inputs)
    return found, gradient.numpy()


def reference(
    logprobs: torch.Tensor, tokens: TrainedTokens, dual_clip: float | None
) -> tuple[list[float], list[float]]:
    losses: list[float] = []
    gradients: list[float] = []
    old, advantages, weights = (c.tolist() for c in (tokens.behaviour_logprobs, tokens.advantages, tokens.weights))
    for t, new in enumerate(logprobs.tolist()):
        ratio = math.exp(new - old[t])
        free, clipped = -ratio * advantages[t], -min(max(ratio, 1 - LOW), 1 + HIGH) * advantages[t]
        loss, gradient = max(free, clipped), free if free >= clipped else 0.0
        if dual_clip is not None and advantages[t] < 0 and loss > -dual_clip * advantages[t]:
            loss, gradient = -dual_clip * advantages[t], 0.0
        losses.append(loss)
        gradients.append(gradient * weights[t])
    return losses, gradients


@pytest.mark.parametrize("dual_clip", [None, DUAL])
def test_loss_and_gradient_follow_the_formula(dual_clip: float | None) -> None:
    for seed in range(5):
        logprobs, tokens = random_tokens(seed, 0.5)
        found, gradient = objective(logprobs, tokens, dual_clip)
        losses, expected = reference(logprobs, tokens, dual_clip)
        np.testing.assert_allclose(found.loss.detach().numpy(), losses, rtol=1e-12)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_metrics_are_sums_over_tokens() -> None:
    logprobs, tokens = random_tokens(1, 0.5)
    found, _ = objective(logprobs, tokens, DUAL)
    ratio, advantage = (logprobs - tokens.behaviour_logprobs).exp().numpy(), tokens.advantages.numpy()
    clipped = ((advantage > 0) & (ratio > 1 + HIGH)) | ((advantage < 0) & (ratio < 1 - LOW))
    assert found.sums["ratio_mean"].item() == pytest.approx(ratio.sum())
    assert found.sums["clip_fraction"].item() == clipped.sum() > 0
    assert found.sums["dual_clip_fraction"].item() == ((advantage < 0) & (ratio > DUAL)).sum() > 0
    assert found.maxima["ratio_deviation_max"].item() == pytest.approx(np.abs(ratio - 1).max())


def test_the_policy_that_sampled_has_ratio_one_and_the_plain_policy_gradient() -> None:
    _, tokens = random_tokens(2)
    found, gradient = objective(tokens.behaviour_logprobs, tokens)
    np.testing.assert_allclose(gradient, (-tokens.weights * tokens.advantages).numpy(), rtol=1e-12)
    assert found.maxima["ratio_deviation_max"].item() == found.sums["clip_fraction"].item() == 0


def test_a_token_that_an_engine_held_impossible_gives_no_gradient_that_is_not_a_number() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -200.0], requires_grad=True)
    found = clip(logprobs, torch.tensor([-torch.inf, -300.0, -1.0]), torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3))
    (gradient,) = torch.autograd.grad(found.loss.sum(), logprobs)
    assert bool(found.loss.isfinite().all() and gradient.isfinite().all())
