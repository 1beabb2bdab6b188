"""Returns of a step and the values that a critic told for them -> how much of their variance it explains."""

from collections.abc import Callable

import torch


def explained_variance(
    returns: torch.Tensor, values: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """`value_explained_variance`: 1 - Var(G - V) / Var(G), the coefficient of determination up to a constant offset.

    1 is a critic that tells all, 0 one that knows no more than the mean, and below 0 it would do better saying nothing.
    Where all returns are the same there is nothing to explain, and it is 0.

    Args:
        returns: [trained tokens] of this rank.
        values: [trained tokens], before the step.
        reduce: sums a tensor over ranks; called twice on every rank, also where a rank has no trained token.
    """
    both = torch.stack([returns.double(), (returns - values).double()])
    total = reduce(torch.cat([both.sum(1), both.new_tensor([both.shape[1]])]))
    centred = both - (total[:2] / total[2].clamp(min=1))[:, None]
    of_returns, of_errors = reduce(centred.square().sum(1)).tolist()
    return {"value_explained_variance": 1 - of_errors / of_returns if of_returns > 0 else 0.0}
