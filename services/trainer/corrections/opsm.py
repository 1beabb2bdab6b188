"""Bad samples that the policy has moved away from -> 0 for their tokens, 1 for all others."""

import torch

from services.trainer.losses.token_loss import Values
from services.trainer.sequence_sums import sequence_means


def opsm(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    delta: float,
) -> tuple[torch.Tensor, Values]:
    """0 where A < 0 and the mean over the sample of behaviour - proximal exceeds `delta` nats, else 1.

    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), equations 8 and 9, off-policy sequence masking: a model learns from its
    own mistakes, and those of a policy far from it only confuse it. The policy there is the one that learns: give what
    it says now as `proximal`, or the updates of a step after the first mask by where it was before.
    """
    is_masked = (sequence_means(behaviour - proximal, sample) > delta) & (advantages < 0)
    return (~is_masked).to(behaviour.dtype), {"opsm_fraction": is_masked.float().sum()}
