"""The clipped policy loss and its gradient against the formula, token by token in float64."""

import math

import numpy as np
import pytest
import torch

from services.trainer.losses.policy_clip import policy_clip_loss
from services.trainer.losses.token_loss import TrainedTokens

LOW, HIGH = 0.2, 0.28


def reference(new: np.ndarray, old: np.ndarray, advantage: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    loss, gradient = 0.0, np.zeros_like(new)
    for t in range(len(new)):
        ratio = math.exp(new[t] - old[t])
        bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
        free, clipped = -ratio * advantage[t], -bounded * advantage[t]
        loss += weight[t] * max(free, clipped)
        if free >= clipped:
            gradient[t] = weight[t] * free
    return loss, gradient


def tokens(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    old = -random.exponential(size=count)
    return old + random.normal(0, 0.3, count), old, random.normal(size=count), random.random(count)


def columns(old: np.ndarray, advantage: np.ndarray, weight: np.ndarray) -> TrainedTokens:
    attempt = torch.zeros(len(old), dtype=torch.int64)
    versions = torch.zeros(len(old), dtype=torch.int32)
    return TrainedTokens(*(torch.from_numpy(a) for a in (old, advantage, weight)), versions, attempt)


def test_loss_and_gradient_follow_the_formula() -> None:
    new, old, advantage, weight = tokens(500)
    logprobs = torch.from_numpy(new).requires_grad_()
    result = policy_clip_loss(logprobs, columns(old, advantage, weight), clip_low=LOW, clip_high=HIGH)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    loss, expected = reference(new, old, advantage, weight)
    assert result.loss.item() == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_the_metrics_are_sums_over_tokens() -> None:
    new, old, advantage, weight = tokens(500)
    result = policy_clip_loss(torch.from_numpy(new), columns(old, advantage, weight), clip_low=LOW, clip_high=HIGH)
    ratio = np.exp(new - old)
    clipped = ((advantage > 0) & (ratio > 1 + HIGH)) | ((advantage < 0) & (ratio < 1 - LOW))
    expected = {
        "ratio_mean": ratio.sum(),
        "clip_fraction": clipped.sum(),
        "kl": (ratio - 1 - (new - old)).sum(),
        "logprob_diff_mean_abs": np.abs(new - old).sum(),
        "advantage_abs_mean": np.abs(advantage).sum(),
    }
    assert {name: value.item() for name, value in result.sums.items()} == pytest.approx(expected, rel=1e-6)
    assert result.maxima["ratio_deviation_max"].item() == pytest.approx(np.abs(ratio - 1).max())


def test_the_policy_that_sampled_has_ratio_one_and_the_plain_policy_gradient() -> None:
    _, old, advantage, weight = tokens(50)
    logprobs = torch.from_numpy(old.copy()).requires_grad_()
    result = policy_clip_loss(logprobs, columns(old, advantage, weight), clip_low=LOW, clip_high=HIGH)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    np.testing.assert_allclose(gradient.numpy(), -weight * advantage, rtol=1e-12)
    assert result.sums["kl"].item() == result.sums["clip_fraction"].item() == 0
