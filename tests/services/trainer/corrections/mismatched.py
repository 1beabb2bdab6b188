"""A step whose trainer and engine disagree, and its log ratios sample by sample in numpy."""

import numpy as np
import torch

from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.losses.token_loss import TrainedTokens, Values
from tests.services.trainer.losses.trained_columns import random_tokens


def mismatched(seed: int, drift: float = 0.5) -> TrainedTokens:
    """Columns with a proximal policy that is `drift` nats from the behaviour."""
    _, tokens = random_tokens(seed, drift)
    return tokens


def corrected(correction: CorrectionFunction, tokens: TrainedTokens) -> tuple[list[float], Values]:
    """The weight of each token, and the sums."""
    assert tokens.proximal_logprobs is not None
    weight, sums = correction(
        tokens.proximal_logprobs, tokens.behaviour_logprobs, tokens.advantages, tokens.staleness, tokens.sample
    )
    return weight.tolist(), sums


def log_ratios(tokens: TrainedTokens) -> tuple[np.ndarray, list[np.ndarray]]:
    """proximal - behaviour of each token, and of all tokens of its sample."""
    assert tokens.proximal_logprobs is not None
    gap, sample = (tokens.proximal_logprobs - tokens.behaviour_logprobs).numpy(), tokens.sample.numpy()
    return gap, [gap[sample == own] for own in sample]


def ratio_of(level: str, own: float, whole: np.ndarray) -> float:
    """The ratio of a token from its log ratio and those of its sample."""
    return float(np.exp({"token": own, "sequence": whole.sum(), "geometric": whole.mean()}[level]))


def nothing() -> tuple[torch.Tensor, ...]:
    """The arguments of a correction for a micro-batch without trained tokens."""
    empty = torch.zeros(0)
    return empty, empty, empty, empty.int(), empty.long()
