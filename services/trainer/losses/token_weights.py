"""The loss mask of a whole step -> the weight of every token in the step's loss, before anything is packed."""

from typing import Literal

import torch

Aggregation = Literal["token", "rollout"]


def token_weights(loss_mask: torch.Tensor, attempt: torch.Tensor, aggregation: Aggregation) -> torch.Tensor:
    """Weights that add up to 1 over the step, so that the loss does not depend on how the step is cut.

    token: 1 / trained tokens of the step (Yu et al. 2025, DAPO, section 3.3). rollout: the mean over attempts of each
    attempt's mean, 1 / (attempts * trained tokens of the attempt) (Shao et al. 2024, equation 3).
    Attempts without a trained token have no mean and do not count.

    Args:
        loss_mask: [tokens] bool, True where the token is trained.
        attempt: [tokens] int64, which attempt a token belongs to.

    Returns:
        [tokens] float32.
    """
    mask = loss_mask.double()
    if aggregation == "token":
        return (mask / mask.sum().clamp(min=1)).float()
    trained = torch.bincount(attempt, weights=mask)
    attempts = (trained > 0).sum().clamp(min=1)
    return (mask / (trained.clamp(min=1)[attempt] * attempts)).float()
