"""Rewards of a step's samples -> how much better each is than the mean of the group's other attempts."""

import torch

from services.trainer.advantages.attempt_rewards import attempt_rewards, difference
from services.trainer.advantages.samples import Samples


def rloo(samples: Samples) -> torch.Tensor:
    """A_i = R_i - mean of R_j over the group's attempts j other than i; [samples] float64.

    Source: Ahmadian et al. 2024 (Back to basics), section 2.2, after Kool et al. 2019 (Buy 4 REINFORCE samples).
    Siblings of a sample belong to its own attempt, so they are not in its baseline. A group of one attempt has no
    others, so its advantage is 0.
    """
    attempts = attempt_rewards(samples)
    size = attempts.size[samples.group]
    others = (size * attempts.mean[samples.group] - attempts.reward[samples.attempt]) / (size - 1).clamp(min=1)
    return torch.where(size > 1, difference(samples.reward, others), 0.0)
