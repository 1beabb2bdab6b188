"""CISPO's objective and its gradient against the formula, token by token in float64."""

import math

import numpy as np
import pytest
import torch

from services.trainer.losses.cispo import cispo
from tests.services.trainer.losses.trained_columns import random_tokens


@pytest.mark.parametrize(("low", "high"), [(None, 0.5), (0.3, 0.4), (1.0, 4.0)])
def test_clipped_tokens_learn_with_the_bounded_weight(low: float | None, high: float) -> None:
    logprobs, tokens = random_tokens(4, 0.6)
    inputs = logprobs.clone().requires_grad_()
    old, advantages = tokens.behaviour_logprobs, tokens.advantages
    found = cispo(inputs, old, advantages, tokens.sample, clip_low=low, clip_high=high)
    (gradient,) = torch.autograd.grad((found.loss * tokens.weights).sum(), inputs)
    clipped = 0
    for t, new in enumerate(logprobs.tolist()):
        ratio = math.exp(new - old[t].item())
        weight = min(max(ratio, 0.0 if low is None else 1 - low), 1 + high)
        clipped += weight != ratio
        assert found.loss[t].item() == pytest.approx(-weight * advantages[t].item() * new, rel=1e-12)
        expected = -weight * advantages[t].item() * tokens.weights[t].item()
        assert gradient[t].item() == pytest.approx(expected, rel=1e-12)
    assert found.sums["clip_fraction"].item() == clipped
    assert found.sums["ratio_mean"].item() == pytest.approx(np.exp((logprobs - old).numpy()).sum())
