"""The estimates of the divergence, their gradients, and what they estimate."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from services.trainer.losses.kl import KlEstimator, kl_estimate, unbiased
from tests.services.trainer.losses.trained_columns import differences, random_tokens

FORMULAS: dict[KlEstimator, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.expm1(-d) + d,
    "low_var": lambda d: min(math.expm1(-d) + d, 10.0),
}


@pytest.mark.parametrize("estimator", FORMULAS)
def test_values_and_gradients_follow_the_formulas(estimator: KlEstimator) -> None:
    logprobs, tokens = random_tokens(5, 1.5)
    reference = tokens.reference_logprobs
    assert reference is not None
    inputs = logprobs.clone().requires_grad_()
    kl = kl_estimate(inputs, reference, estimator)
    (gradient,) = torch.autograd.grad(kl.sum(), inputs)

    def total(at: np.ndarray) -> float:
        return sum(FORMULAS[estimator](d) for d in at - reference.numpy())

    expected = [FORMULAS[estimator](d) for d in (logprobs - reference).tolist()]
    np.testing.assert_allclose(kl.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), differences(total, logprobs.numpy()), rtol=1e-5, atol=1e-6)


def test_low_var_stays_within_its_bound_where_k3_does_not() -> None:
    far = torch.tensor([-30.0]), torch.tensor([-1.0])
    assert kl_estimate(*far, "low_var").item() == 10.0
    assert 1e6 < kl_estimate(*far, "k3").item() < torch.inf


def test_k3_of_nearby_policies_is_exact_in_float32() -> None:
    gap = torch.tensor([1e-4, -3e-5])
    told = kl_estimate(gap, torch.zeros(2), "k3").tolist()
    assert told == pytest.approx([math.expm1(-d) + d for d in gap.double().tolist()], rel=1e-3)


def test_equal_policies_diverge_by_zero() -> None:
    logprobs, _ = random_tokens(5)
    assert {kl_estimate(logprobs, logprobs, estimator).abs().sum().item() for estimator in FORMULAS} == {0.0}


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_over_a_whole_vocabulary_the_unbiased_estimates_are_the_divergence_and_its_gradient(
    estimator: KlEstimator,
) -> None:
    """The mean over samples of an old policy, taken exactly: every token of a small vocabulary, by its probability."""
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=6)).requires_grad_()
    old, reference = (torch.from_numpy(random.normal(size=6)).log_softmax(0) for _ in range(2))
    logprobs = logits.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    estimated = (old.exp() * unbiased(kl_estimate(logprobs, reference, estimator), logprobs, old)).sum()
    assert estimated.item() == pytest.approx(exact.item(), rel=1e-12)
    expected, found = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (exact, estimated))
    torch.testing.assert_close(found, expected)
