"""Importance weights of a step's trained tokens -> the same with mean 1."""

from collections.abc import Callable

import torch


def normalize(weight: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """weight / mean of the weights of tokens that are not rejected, over the whole step; [trained tokens].

    Self-normalized importance sampling (Owen 2013, "Monte Carlo theory, methods and examples", section 9.2): the step
    keeps its size however far the policies are apart. Rejected tokens stay at 0 and do not make the others heavier.

    Args:
        reduce: sums a tensor over ranks; called once on every rank, also where a rank has no trained token.
    """
    kept = weight[weight > 0].double()
    total, count = reduce(torch.stack([kept.sum(), kept.new_tensor(len(kept))])).unbind()
    return weight * (count.clamp(min=1) / total).to(weight.dtype) if bool(total > 0) else weight
