"""Log-probabilities by the trainer and by the engine -> importance weights of tokens or of whole sequences."""

from typing import Literal

import torch

from services.trainer.corrections.ratio_level import RatioLevel, ratio_at
from services.trainer.losses.token_loss import Values

MisMode = Literal["truncate", "clip", "mask"]


def mis(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    level: RatioLevel,
    mode: MisMode,
    bounds: tuple[float, float],
) -> tuple[torch.Tensor, Values]:
    """The ratio at its level: at most the upper bound (truncate), within both (clip), or 0 outside of them (mask).

    Source: Liu et al. 2025 (When speed kills stability: demystifying RL collapse from the training-inference mismatch),
    token and sequence TIS and MIS. Rejections of other levels and vetoes are corrections of their own.
    """
    low, high = bounds
    ratio = ratio_at(level, proximal - behaviour, sample)
    if mode == "mask":
        weight = torch.where((ratio < low) | (ratio > high), 0.0, ratio)
    else:
        weight = ratio.clamp(min=low if mode == "clip" else None, max=high)
    return weight, {"correction_clipped_fraction": (weight != ratio).float().sum()}
