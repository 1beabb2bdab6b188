"""Log-probabilities by the trainer and by the engine -> truncated importance weights of tokens."""

import torch

from services.trainer.losses.objective import bounded_exp
from services.trainer.losses.token_loss import Values


def tis(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    bounds: tuple[float, float],
) -> tuple[torch.Tensor, Values]:
    """exp(proximal - behaviour), kept within the bounds.

    Source: Yao et al. 2025 (Your efficient RL framework secretly brings you off-policy RL training), truncated
    importance sampling, after Ionides 2008; the lower bound is 0 there.
    """
    ratio = bounded_exp(proximal - behaviour)
    weight = ratio.clamp(*bounds)
    return weight, {"correction_clipped_fraction": (weight != ratio).float().sum()}
