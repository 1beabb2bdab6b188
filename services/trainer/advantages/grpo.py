"""Rewards of a step's samples -> advantages relative to their groups, in units of the group's spread."""

import torch

from services.trainer.advantages.attempt_rewards import attempt_rewards, group_std
from services.trainer.advantages.group_baseline import group_baseline
from services.trainer.advantages.samples import Samples

EPSILON = 1e-6


def grpo(samples: Samples, normalize_std: bool = True) -> torch.Tensor:
    """A = (R - mean) / (std + 1e-6), or R - mean without `normalize_std`; [samples] float64.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2, outcome supervision. Mean and std (the unbiased estimate)
    are those of the group's attempts, see `group_std`; where all rewards are the same the advantage is 0. Leaving the
    division out is Liu et al. 2025 (Dr. GRPO), section 3.2.
    """
    centred = group_baseline(samples)
    if not normalize_std:
        return centred
    std = group_std(samples, attempt_rewards(samples))[samples.group]
    return torch.where(std > 0, centred / (std + EPSILON), 0.0)
