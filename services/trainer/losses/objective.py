"""What every policy objective takes and gives, and the probability ratio that they share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from services.trainer.losses.token_loss import Values

LOG_RATIO_BOUND = 20.0
"""exp(20) is 5e8: beyond that a ratio says nothing more, and its square would overflow float32."""


@dataclass(frozen=True, slots=True)
class TokenObjective:
    """What each token would have the policy minimise, before weights, corrections and penalties."""

    loss: torch.Tensor
    """[tokens], with gradient."""
    sums: Values
    """Metrics to be divided by the number of trained tokens."""
    maxima: Values


Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], TokenObjective]
"""(logprobs with gradient, old_logprobs, advantages, sample), each [tokens] -> the objective of each token."""


def bounded_exp(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp of the log ratio, which is kept within +-20, so that no gradient can be 0 times infinity."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r >= 0, the third estimator of Schulman 2020; which keeps its digits where r is near 1."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).expm1() - log_ratio


def ratio_metrics(ratio: torch.Tensor, is_clipped: torch.Tensor) -> tuple[Values, Values]:
    """Sums and maxima of a ratio [tokens] and of where it was clipped [tokens] bool."""
    with torch.no_grad():
        sums = {"ratio_mean": ratio.sum(), "clip_fraction": is_clipped.float().sum()}
        return sums, {"ratio_deviation_max": largest((ratio - 1).abs())}


def largest(values: torch.Tensor) -> torch.Tensor:
    """The largest of values >= 0; 0 if there are none."""
    return torch.cat([values.detach(), values.new_zeros(1)]).max()
