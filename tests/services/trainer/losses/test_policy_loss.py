"""How the policy's loss is put together, token by token in float64."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from services.trainer.losses.cispo import cispo
from services.trainer.losses.gspo import gspo
from services.trainer.losses.policy_loss import OldPolicy, PolicyLoss
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.token_loss import Predictions, TrainedTokens, Values
from tests.services.trainer.losses.trained_columns import (
    check_empty,
    differences,
    gradient_of,
    nothing_predicted,
    random_tokens,
)

clip = partial(ppo_clip, clip_low=0.2, clip_high=0.3)


def column(values: torch.Tensor | None) -> np.ndarray:
    assert values is not None
    return values.numpy()


def clipped_loss(new: np.ndarray, old: np.ndarray, tokens: TrainedTokens) -> list[float]:
    pairs = zip(new - old, column(tokens.advantages), strict=True)
    return [max(-math.exp(d) * a, -min(max(math.exp(d), 0.8), 1.3) * a) for d, a in pairs]


def proximal_over_behaviour(
    proximal: torch.Tensor, behaviour: torch.Tensor, advantages: torch.Tensor, staleness: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor, Values]:
    return (proximal - behaviour).exp(), {"correction_mean": (proximal - behaviour).exp().sum()}


@pytest.mark.parametrize("old_policy", ["behaviour", "proximal"])
def test_the_old_policy_is_the_one_that_the_settings_name(old_policy: OldPolicy) -> None:
    logprobs, tokens = random_tokens(1)
    found, _ = gradient_of(PolicyLoss(clip, old_policy), logprobs, tokens)
    old = tokens.behaviour_logprobs if old_policy == "behaviour" else tokens.proximal_logprobs
    expected = np.dot(clipped_loss(logprobs.numpy(), column(old), tokens), column(tokens.weights))
    assert found.loss.item() == pytest.approx(expected, rel=1e-12)


def test_decoupled_ppo_weighs_the_ratio_to_the_proximal_policy_by_proximal_over_behaviour() -> None:
    logprobs, tokens = random_tokens(2)
    proximal = column(tokens.proximal_logprobs)
    way = np.exp(proximal - tokens.behaviour_logprobs.numpy())

    def loss(at: np.ndarray) -> float:
        return float((np.asarray(clipped_loss(at, proximal, tokens)) * way * tokens.weights.numpy()).sum())

    found, gradient = gradient_of(PolicyLoss(clip, "proximal", proximal_over_behaviour), logprobs, tokens)
    assert found.loss.item() == pytest.approx(loss(logprobs.numpy()), rel=1e-12)
    np.testing.assert_allclose(gradient, differences(loss, logprobs.numpy()), rtol=1e-5, atol=1e-8)
    assert found.sums["correction_mean"].item() == pytest.approx(way.sum())


def test_without_a_proximal_column_the_predictions_are_that_policy() -> None:
    logprobs, tokens = random_tokens(3)
    unknown = replace(tokens, proximal_logprobs=None)
    found, gradient = gradient_of(PolicyLoss(clip, "proximal", proximal_over_behaviour), logprobs, unknown)
    way = (logprobs - tokens.behaviour_logprobs).exp()
    np.testing.assert_allclose(gradient, (-tokens.weights * tokens.advantages * way).numpy(), rtol=1e-12)
    assert found.maxima["ratio_deviation_max"].item() == 0


def test_a_correction_that_is_known_before_the_step_is_taken_as_it_is() -> None:
    logprobs, tokens = random_tokens(4)
    weight = torch.from_numpy(np.random.default_rng(0).random(len(logprobs)))
    known = replace(tokens, correction=weight)
    found, _ = gradient_of(PolicyLoss(clip, "proximal", proximal_over_behaviour), logprobs, known)
    each = clipped_loss(logprobs.numpy(), column(tokens.proximal_logprobs), tokens)
    assert found.loss.item() == pytest.approx(float((np.asarray(each) * (weight * tokens.weights).numpy()).sum()))
    assert "correction_mean" not in found.sums


@pytest.mark.parametrize("is_unbiased", [False, True])
def test_divergence_and_entropy_come_on_top_and_are_not_corrected(is_unbiased: bool) -> None:
    logprobs, tokens = random_tokens(5)
    tokens = replace(tokens, correction=torch.zeros(len(logprobs), dtype=torch.float64))
    behaviour, reference = column(tokens.behaviour_logprobs), column(tokens.reference_logprobs)

    def loss(at: np.ndarray) -> float:
        gap = at - reference
        kl = (np.exp(-gap) - 1 + gap) * (np.exp(at - behaviour) if is_unbiased else 1)
        return float(((0.4 * kl - 0.1 * at**2) * tokens.weights.numpy()).sum())

    inputs = logprobs.clone().requires_grad_()
    policy_loss = PolicyLoss(clip, kl_coef=0.4, is_kl_unbiased=is_unbiased, entropy_coef=0.1)
    found = policy_loss(Predictions(inputs, inputs.square()), tokens)
    (gradient,) = torch.autograd.grad(found.loss, inputs)
    assert found.loss.item() == pytest.approx(loss(logprobs.numpy()), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), differences(loss, logprobs.numpy()), rtol=1e-5, atol=1e-8)
    gap = logprobs.numpy() - reference
    assert found.sums["kl_reference"].item() == pytest.approx((np.exp(-gap) - 1 + gap).sum())
    assert found.sums["entropy"].item() == pytest.approx((logprobs**2).sum().item())


def test_metrics_tell_the_distance_to_the_policy_that_sampled() -> None:
    logprobs, tokens = random_tokens(6)
    found, _ = gradient_of(PolicyLoss(clip, "proximal"), logprobs, tokens)
    gap = (logprobs - tokens.behaviour_logprobs).numpy()
    assert found.sums["kl"].item() == pytest.approx((np.exp(gap) - 1 - gap).sum())
    assert found.sums["logprob_diff_mean_abs"].item() == pytest.approx(np.abs(gap).sum())
    assert found.sums["advantage_abs_mean"].item() == pytest.approx(np.abs(tokens.advantages.numpy()).sum())


@pytest.mark.parametrize(
    "objective",
    [clip, partial(gspo, clip_low=3e-4, clip_high=4e-4), partial(cispo, clip_low=None, clip_high=4.0)],
    ids=["ppo_clip", "gspo", "cispo"],
)
def test_a_micro_batch_without_tokens_adds_zero(objective: object) -> None:
    logprobs, tokens = random_tokens(7)
    loss = PolicyLoss(objective, "proximal", proximal_over_behaviour, kl_coef=0.1, entropy_coef=0.1)  # pyright: ignore
    check_empty(loss, nothing_predicted(), loss(Predictions(logprobs, -logprobs), tokens))


def test_parts_of_a_step_add_up_to_the_step() -> None:
    logprobs, tokens = random_tokens(8)
    loss = PolicyLoss(partial(gspo, clip_low=0.1, clip_high=0.1), "proximal", proximal_over_behaviour, kl_coef=0.1)
    whole, gradient = gradient_of(loss, logprobs, tokens)
    first = tokens.sample < 5
    parts = [gradient_of(loss, logprobs[rows], chosen(tokens, rows)) for rows in (first, ~first)]
    assert sum(part.loss.item() for part, _ in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), gradient, rtol=1e-12)


def chosen(tokens: TrainedTokens, rows: torch.Tensor) -> TrainedTokens:
    names = ("behaviour_logprobs", "advantages", "weights", "staleness", "sample")
    names += ("proximal_logprobs", "reference_logprobs")
    return TrainedTokens(**{name: getattr(tokens, name)[rows] for name in names})
