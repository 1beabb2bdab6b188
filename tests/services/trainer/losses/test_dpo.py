"""DPO and IPO against their formulas, pair by pair in float64."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from services.trainer.losses.dpo import DpoType, dpo_loss
from services.trainer.losses.token_loss import Predictions, TrainedTokens
from tests.services.trainer.losses.trained_columns import (
    check_empty,
    differences,
    gradient_of,
    nothing_predicted,
    random_tokens,
)

PAIRS = 9


def pairs(seed: int, in_order: bool) -> tuple[torch.Tensor, TrainedTokens]:
    """Answers 2 p and 2 p + 1 of uneven length, one after the other or with the samples shuffled."""
    random = np.random.default_rng(seed)
    answers = np.arange(2 * PAIRS) if in_order else random.permutation(2 * PAIRS)
    lengths = random.integers(1, 12, 2 * PAIRS)
    pair = torch.from_numpy(np.repeat(answers, lengths[answers]))
    weights = torch.from_numpy(np.repeat(1 / (2 * PAIRS * lengths[answers]), lengths[answers]))
    reference = torch.from_numpy(-random.exponential(size=len(pair)))
    logprobs = reference + torch.from_numpy(random.normal(0, 0.5, len(pair)))
    _, tokens = random_tokens(seed)
    return logprobs, replace(tokens, weights=weights, reference_logprobs=reference, pair=pair)


def gaps(logprobs: np.ndarray, tokens: TrainedTokens) -> list[tuple[float, float]]:
    """Of each pair the log ratios of both answers to the reference."""
    assert tokens.pair is not None
    assert tokens.reference_logprobs is not None
    pair, ratio = tokens.pair.numpy(), logprobs - tokens.reference_logprobs.numpy()
    return [(float(ratio[pair == 2 * p].sum()), float(ratio[pair == 2 * p + 1].sum())) for p in range(PAIRS)]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def reference_loss(logprobs: np.ndarray, tokens: TrainedTokens, beta: float, smoothing: float, kind: str) -> float:
    losses: list[float] = []
    for chosen, rejected in gaps(logprobs, tokens):
        h = chosen - rejected
        smooth = (1 - smoothing) * log_sigmoid(beta * h) + smoothing * log_sigmoid(-beta * h)
        losses.append(-smooth if kind == "dpo" else (h - 1 / (2 * beta)) ** 2)
    return float(np.mean(losses))


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("kind", "smoothing"), [("dpo", 0.0), ("dpo", 0.1), ("ipo", 0.0)])
def test_loss_and_gradient_follow_the_formula(kind: DpoType, smoothing: float, in_order: bool) -> None:
    logprobs, tokens = pairs(1, in_order)
    found, gradient = gradient_of(partial(dpo_loss, beta=0.3, label_smoothing=smoothing, kind=kind), logprobs, tokens)

    def loss(at: np.ndarray) -> float:
        return reference_loss(at, tokens, 0.3, smoothing, kind)

    assert found.loss.item() == pytest.approx(loss(logprobs.numpy()), rel=1e-12)
    np.testing.assert_allclose(gradient, differences(loss, logprobs.numpy()), rtol=1e-5, atol=1e-9)


def test_metrics_are_means_over_pairs_however_long_their_answers_are() -> None:
    logprobs, tokens = pairs(2, in_order=False)
    found = dpo_loss(Predictions(logprobs), tokens, beta=0.3, label_smoothing=0.0, kind="dpo")
    both = np.asarray(gaps(logprobs.numpy(), tokens))
    expected = {
        "preference_accuracy": float((both[:, 0] > both[:, 1]).mean()),
        "preference_margin": float(0.3 * (both[:, 0] - both[:, 1]).mean()),
        "chosen_reward": float(0.3 * both[:, 0].mean()),
        "rejected_reward": float(0.3 * both[:, 1].mean()),
    }
    assert {name: value.item() for name, value in found.totals.items()} == pytest.approx(expected, rel=1e-12)


def test_a_pair_without_one_of_its_answers_prefers_nothing() -> None:
    logprobs, tokens = pairs(4, in_order=False)
    assert tokens.pair is not None
    kept, loss = tokens.pair != 5, partial(dpo_loss, beta=0.3, label_smoothing=0.0, kind="dpo")
    columns = ("behaviour_logprobs", "advantages", "staleness", "sample", "proximal_logprobs", "returns", "old_values")
    same = dict.fromkeys(columns[4:]) | {name: torch.zeros(int(kept.sum())) for name in columns[:4]}
    own = {name: getattr(tokens, name)[kept] for name in ("weights", "reference_logprobs", "pair")}
    found, gradient = gradient_of(loss, logprobs[kept], replace(tokens, **same, **own))
    assert not gradient[own["pair"] == 4].any()
    whole, everything = gradient_of(loss, logprobs, tokens)
    np.testing.assert_array_equal(gradient[own["pair"] != 4], everything[(tokens.pair < 4) | (tokens.pair > 5)])
    assert found.loss < whole.loss


def test_the_reference_itself_does_not_prefer() -> None:
    _, tokens = pairs(3, in_order=True)
    assert tokens.reference_logprobs is not None
    found = dpo_loss(Predictions(tokens.reference_logprobs), tokens, beta=0.3, label_smoothing=0.0, kind="dpo")
    assert found.loss.item() == pytest.approx(math.log(2))


def test_a_micro_batch_without_tokens_adds_zero() -> None:
    logprobs, tokens = pairs(3, in_order=True)
    loss = partial(dpo_loss, beta=0.3, label_smoothing=0.0, kind="dpo")
    check_empty(loss, nothing_predicted(), loss(Predictions(logprobs, -logprobs), tokens))
