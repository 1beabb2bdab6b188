"""The samples of a step over all ranks, without their tokens: what advantages are made of."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Samples:
    """One row a sample, the same on every rank; a sample is one trained sequence, and every tensor is [samples].

    An attempt is one execution of a prompt. It gives one sample, or several siblings, such as the parts of a
    conversation whose context was compacted on the way.
    """

    reward: torch.Tensor
    """float64."""
    group: torch.Tensor
    """int64: 0 .. groups - 1; the attempts of one prompt."""
    attempt: torch.Tensor
    """int64: 0 .. attempts - 1, over all groups; siblings share it."""
    dataset: torch.Tensor
    """int64: 0 .. datasets - 1."""
    trained: torch.Tensor
    """int64: trained tokens."""
