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
    own mistakes, and those of a policy far from it only confuse it.
    """
    is_far = sequence_means(behaviour - proximal, sample) > delta
    return (~((advantages < 0) & is_far)).to(behaviour.dtype), {}
