"""Weight versions behind each token -> 0 for tokens of versions that are too old, 1 for others."""

import torch

from services.trainer.losses.token_loss import Values


def staleness_mask(
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    staleness: torch.Tensor,
    sample: torch.Tensor,
    *,
    most: int,
) -> tuple[torch.Tensor, Values]:
    """1 where at most `most` versions lie between the token's and the step's: the young tokens of an attempt that was
    under way for longer are trained, and its old ones are context.
    """
    return (staleness <= most).to(behaviour.dtype), {}
