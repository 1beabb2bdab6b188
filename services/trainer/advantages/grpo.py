"""Rewards of a step's attempts -> one advantage an attempt, relative to the other attempts of its group."""

import torch

EPSILON = 1e-6


def grpo_advantages(rewards: torch.Tensor, group: torch.Tensor, normalize_std: bool) -> torch.Tensor:
    """Group-relative advantages: (r - mean) / (std + 1e-6), or r - mean without `normalize_std`.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2, outcome supervision. std is the unbiased estimate; groups
    whose rewards are all equal, and groups of one attempt, have advantage 0. Leaving the division out is
    Liu et al. 2025 (Dr. GRPO), section 3.1.

    Args:
        rewards: [attempts], floating.
        group: [attempts], which group an attempt belongs to, 0 .. groups - 1, in any order; sizes may differ.

    Returns:
        [attempts], in the type of `rewards`.
    """
    groups = int(group.max()) + 1 if group.numel() else 0
    sizes = torch.bincount(group, minlength=groups).to(rewards.dtype)
    centred = rewards - _sum(rewards, group, groups).div(sizes)[group]
    highest = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, group, rewards, "amax")
    lowest = rewards.new_full((groups,), torch.inf).scatter_reduce(0, group, rewards, "amin")
    differ = (highest > lowest)[group]
    if normalize_std:
        variance = _sum(centred.square(), group, groups).div((sizes - 1).clamp(min=1))
        centred = centred / (variance.sqrt()[group] + EPSILON)
    # equal rewards leave a rounding residue after the mean is taken away, which the division would blow up
    return torch.where(differ, centred, torch.zeros_like(centred))


def _sum(values: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    return values.new_zeros(groups).index_add(0, group, values)
