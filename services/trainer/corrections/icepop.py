"""Log-probabilities by the trainer and by the engine -> weights, none where they differ too much."""

import torch

from services.trainer.losses.objective import bounded_exp
from services.trainer.losses.token_loss import Values


def icepop(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    bounds: tuple[float, float],
) -> tuple[torch.Tensor, Values]:
    """exp(proximal - behaviour) within the bounds, 0 outside.

    Source: Zhao et al. 2025 (Small leak can sink a great ship: boost RL training on MoE with IcePop), where the bounds
    are called alpha and beta.
    """
    low, high = bounds
    ratio = bounded_exp(proximal - behaviour)
    is_outside = (ratio < low) | (ratio > high)
    return torch.where(is_outside, 0.0, ratio), {"correction_clipped_fraction": is_outside.float().sum()}
