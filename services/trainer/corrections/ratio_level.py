"""Log ratios of tokens -> ratios of tokens, of sequences, or of sequences by token."""

from typing import Literal

import torch

from services.trainer.losses.objective import bounded_exp
from services.trainer.sequence_sums import sequence_means, sequence_sums

RatioLevel = Literal["token", "sequence", "geometric"]


def ratio_at(level: RatioLevel, log_ratio: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """token: the token's own ratio; sequence: their product over the sample's trained tokens, the exact importance
    weight of the sample; geometric: the geometric mean of them, which does not grow with length; [tokens].
    """
    if level == "sequence":
        log_ratio = sequence_sums(log_ratio, sample)
    elif level == "geometric":
        log_ratio = sequence_means(log_ratio, sample)
    return bounded_exp(log_ratio)
