"""Advantages of a step's trained tokens -> the same with mean 0 and variance 1."""

from collections.abc import Callable

import torch

EPSILON = 1e-8


def whiten(
    advantages: torch.Tensor,
    mask: torch.Tensor,
    part: torch.Tensor,
    parts: int,
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """(A - mean) / sqrt(variance + 1e-8) over the trained tokens of the whole step; [tokens] float64, 0 elsewhere.

    Source: Hu et al. 2025 (REINFORCE++), section 3.1, global advantage normalization. The variance is the unbiased
    estimate; a part with one trained token has advantage 0.

    Args:
        advantages: [tokens], of this rank.
        mask: [tokens] bool, True where the token is trained.
        part: [tokens] int64, which part of the step a token is whitened with: zeros for all alike, or its dataset.
        parts: how many parts the step has over all ranks.
        reduce: sums a tensor over ranks; called twice on every rank, also where a rank has no trained token.
    """
    owner, values = part[mask], advantages[mask].double()
    count, total = reduce(torch.stack([_sums(torch.ones_like(values), owner, parts), _sums(values, owner, parts)]))
    centred = values - (total / count.clamp(min=1))[owner]
    variance = reduce(_sums(centred.square(), owner, parts)) / (count - 1).clamp(min=1)
    whitened = torch.zeros(len(advantages), dtype=torch.float64, device=advantages.device)
    whitened[mask] = centred * (variance + EPSILON).rsqrt()[owner]
    return whitened


def _sums(values: torch.Tensor, owner: torch.Tensor, parts: int) -> torch.Tensor:
    return values.new_zeros(parts).index_add(0, owner, values)
