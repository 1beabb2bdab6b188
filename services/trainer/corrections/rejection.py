"""Log-probabilities by the trainer and by the engine -> 0 for tokens that are too far apart, 1 for others."""

import torch

from services.trainer.corrections.ratio_level import RatioLevel, ratio_at
from services.trainer.losses.token_loss import Values
from services.trainer.sequence_sums import sequence_sums


def reject(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    level: RatioLevel,
    bounds: tuple[float, float],
) -> tuple[torch.Tensor, Values]:
    """1 where the ratio at its level is within the bounds, else 0: rejection sampling of tokens or sequences.

    Source: Liu et al. 2025 (When speed kills stability), masked importance sampling; the geometric level is Li et al.
    2025 (Trust region masking for long-horizon LLM reinforcement learning).
    """
    low, high = bounds
    ratio = ratio_at(level, proximal - behaviour, sample)
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype), {}


def veto(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    threshold: float,
) -> tuple[torch.Tensor, Values]:
    """0 for all tokens of a sample of which one token has a ratio below `threshold`, else 1.

    Such a token is next to impossible for the trainer, so that what follows it is from another world. Source: Liu et
    al. 2025 (When speed kills stability), the veto for catastrophic tokens.
    """
    ratio = ratio_at("token", proximal - behaviour, sample)
    catastrophic = sequence_sums((ratio < threshold).to(ratio.dtype), sample)
    return (catastrophic == 0).to(ratio.dtype), {}
