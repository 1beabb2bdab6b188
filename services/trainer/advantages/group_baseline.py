"""Rewards of a step's samples -> how much better each is than the mean attempt of its group."""

import torch

from services.trainer.advantages.attempt_rewards import attempt_rewards, difference
from services.trainer.advantages.samples import Samples


def group_baseline(samples: Samples) -> torch.Tensor:
    """A = R - mean reward of the group's attempts; [samples] float64.

    Source: Liu et al. 2025 (Understanding R1-Zero-like training, "Dr. GRPO"), section 3.2; the same baseline is that of
    REINFORCE++ with baseline, Hu et al. 2025 (REINFORCE++), section 3.2, which whitens the advantages afterwards.
    A group of one attempt has nothing to be compared with, so its advantage is 0.
    """
    attempts = attempt_rewards(samples)
    centred = difference(samples.reward, attempts.mean[samples.group])
    return torch.where(attempts.size[samples.group] > 1, centred, 0.0)
