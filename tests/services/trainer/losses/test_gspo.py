"""GSPO's objective against the sequence formula and the token formula of the paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from services.trainer.losses.gspo import gspo
from services.trainer.losses.token_loss import TrainedTokens
from tests.services.trainer.losses.trained_columns import differences, random_tokens

LOW, HIGH = 0.03, 0.04


def gradient_of(logprobs: torch.Tensor, tokens: TrainedTokens) -> tuple[torch.Tensor, np.ndarray]:
    inputs = logprobs.clone().requires_grad_()
    old = tokens.behaviour_logprobs
    found = gspo(inputs, old, tokens.advantages, tokens.sample, clip_low=LOW, clip_high=HIGH)
    loss = (found.loss * tokens.weights).sum()
    (gradient,) = torch.autograd.grad(loss, inputs)
    return loss.detach(), gradient.numpy()


def by_sequence(seed: int) -> tuple[torch.Tensor, TrainedTokens]:
    """Columns whose advantage is that of the sample and whose weight is 1 / (samples * its trained tokens)."""
    logprobs, tokens = random_tokens(seed, 0.1)
    counts = torch.bincount(tokens.sample)
    advantage = torch.from_numpy(np.random.default_rng(seed).normal(size=len(counts)))
    weights = 1.0 / ((counts > 0).sum() * counts[tokens.sample].double())
    return logprobs, replace(tokens, advantages=advantage[tokens.sample], weights=weights)


def sequence_loss(logprobs: np.ndarray, tokens: TrainedTokens) -> float:
    """Zheng et al. 2025, equation 5, with a minus."""
    old, sample = tokens.behaviour_logprobs.numpy(), tokens.sample.numpy()
    losses: list[float] = []
    for one in np.unique(sample):
        own = sample == one
        ratio = math.exp(float(np.mean(logprobs[own] - old[own])))
        advantage = float(tokens.advantages.numpy()[own][0])
        losses.append(-min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage))
    return float(np.mean(losses))


def test_with_an_advantage_for_each_sample_loss_and_gradient_are_those_of_the_sequence_formula() -> None:
    for seed in range(5):
        logprobs, tokens = by_sequence(seed)
        loss, gradient = gradient_of(logprobs, tokens)
        assert loss.item() == pytest.approx(sequence_loss(logprobs.numpy(), tokens), rel=1e-11)
        expected = differences(lambda x, tokens=tokens: sequence_loss(x, tokens), logprobs.numpy())
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_with_an_advantage_for_each_token_the_gradient_is_that_of_the_token_formula() -> None:
    logprobs, tokens = random_tokens(7, 0.1)
    _, gradient = gradient_of(logprobs, tokens)
    old, sample = tokens.behaviour_logprobs.numpy(), tokens.sample.numpy()
    for t, advantage in enumerate(tokens.advantages.tolist()):
        own = sample == sample[t]
        ratio = math.exp(float(np.mean((logprobs.numpy() - old)[own])))
        is_clipped = ratio > 1 + HIGH if advantage > 0 else ratio < 1 - LOW
        expected = 0.0 if is_clipped else -tokens.weights[t].item() * ratio * advantage
        assert gradient[t] == pytest.approx(expected, rel=1e-11)


def test_some_sequences_are_clipped_and_all_tokens_of_them_count() -> None:
    logprobs, tokens = by_sequence(3)
    found = gspo(logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.sample, clip_low=LOW, clip_high=HIGH)
    clipped = 0
    for one in tokens.sample.unique().tolist():
        own = tokens.sample == one
        ratio, advantage = (logprobs - tokens.behaviour_logprobs)[own].mean().exp(), tokens.advantages[own][0]
        is_clipped = ratio > 1 + HIGH if advantage > 0 else ratio < 1 - LOW
        clipped += int(own.sum()) if is_clipped else 0
    assert found.sums["clip_fraction"].item() == clipped > 0
