"""Rewards of samples -> rewards of attempts and their statistics by group, every attempt counted once."""

from dataclasses import dataclass

import torch

from services.trainer.advantages.samples import Samples

RESIDUE = 1e-12
"""Differences of this size, relative to what was subtracted, are rounding."""


@dataclass(frozen=True, slots=True)
class AttemptRewards:
    """A row an attempt, in the order of `Samples.attempt`."""

    reward: torch.Tensor
    """[attempts] float64: the mean over the attempt's samples."""
    group: torch.Tensor
    """[attempts] int64."""
    size: torch.Tensor
    """[groups] float64: attempts of the group."""
    mean: torch.Tensor
    """[groups] float64: of the attempts' rewards."""


def attempt_rewards(samples: Samples) -> AttemptRewards:
    """An attempt counts once however many samples it gave, and also if none of them is trained: its reward is known."""
    attempts, groups = _count(samples.attempt), _count(samples.group)
    reward = _sums(samples.reward, samples.attempt, attempts) / torch.bincount(samples.attempt, minlength=attempts)
    group = samples.group.new_zeros(attempts).scatter(0, samples.attempt, samples.group)
    size = torch.bincount(group, minlength=groups).double()
    return AttemptRewards(reward, group, size, _sums(reward, group, groups) / size)


def difference(reward: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """reward - baseline, exactly 0 where only rounding tells them apart: a division by a tiny std would blow it up."""
    gap = reward - baseline
    return torch.where(gap.abs() <= RESIDUE * torch.maximum(reward.abs(), baseline.abs()), 0.0, gap)


def group_std(samples: Samples, attempts: AttemptRewards) -> torch.Tensor:
    """[groups] float64: the unbiased standard deviation of the attempts' rewards; 0 for a group of one attempt.

    sqrt(sum over samples of (R - mean)^2 / siblings / (attempts - 1)): an attempt weighs 1, and siblings with rewards
    of their own add their spread, so that their distance from the mean is never divided by the spread of others alone.
    """
    siblings = torch.bincount(samples.attempt, minlength=len(attempts.reward))[samples.attempt]
    squares = difference(samples.reward, attempts.mean[samples.group]).square() / siblings
    variance = _sums(squares, samples.group, len(attempts.size)) / (attempts.size - 1).clamp(min=1)
    return torch.where(attempts.size > 1, variance.sqrt(), 0.0)


def _sums(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    return values.new_zeros(count).index_add(0, index, values)


def _count(index: torch.Tensor) -> int:
    return int(index.max()) + 1 if index.numel() else 0
