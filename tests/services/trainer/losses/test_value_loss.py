"""The critic's loss and its gradient against the formula, token by token in float64."""

from functools import partial

import numpy as np
import pytest
import torch

from services.trainer.losses.token_loss import Predictions
from services.trainer.losses.value_loss import value_loss
from tests.services.trainer.losses.trained_columns import (
    check_empty,
    differences,
    nothing_predicted,
    random_tokens,
)


@pytest.mark.parametrize("value_clip", [None, 0.2, 1.0])
def test_loss_gradient_and_metrics_follow_the_formula(value_clip: float | None) -> None:
    _, tokens = random_tokens(6)
    assert tokens.returns is not None
    assert tokens.old_values is not None
    returns, old, weights = tokens.returns.numpy(), tokens.old_values.numpy(), tokens.weights.numpy()
    values = old + np.random.default_rng(1).normal(0, 0.5, len(old))

    def errors(at: np.ndarray) -> list[tuple[float, float]]:
        bound = np.inf if value_clip is None else value_clip
        near = old + np.clip(at - old, -bound, bound)
        return [((v - g) ** 2, (n - g) ** 2) for v, n, g in zip(at, near, returns, strict=True)]

    def loss(at: np.ndarray) -> float:
        return sum(w * max(pair) / 2 for w, pair in zip(weights, errors(at), strict=True))

    inputs = torch.from_numpy(values).requires_grad_()
    found = value_loss(Predictions(torch.zeros(0), None, inputs), tokens, value_clip=value_clip)
    (gradient,) = torch.autograd.grad(found.loss, inputs)
    assert found.loss.item() == pytest.approx(loss(values), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), differences(loss, values), rtol=1e-5, atol=1e-7)
    expected = {
        "value_mean": values.sum(),
        "return_mean": returns.sum(),
        "value_error_mean_abs": np.abs(values - returns).sum(),
        "value_clip_fraction": sum(near > free for free, near in errors(values)),
    }
    assert {name: value.item() for name, value in found.sums.items()} == pytest.approx(expected)


def test_a_micro_batch_without_tokens_adds_zero() -> None:
    _, tokens = random_tokens(6)
    loss = partial(value_loss, value_clip=0.2)
    full = loss(Predictions(torch.zeros(0), None, tokens.old_values), tokens)
    check_empty(loss, nothing_predicted(), full)
