"""The loss mask of a rank and the counts of the step -> the weight of every token in the step's loss."""

from typing import Literal

import torch

from services.trainer.advantages.samples import Samples

Aggregation = Literal["token", "rollout", "constant"]


def token_weights(
    loss_mask: torch.Tensor, row: torch.Tensor, samples: Samples, aggregation: Aggregation, constant_length: int = 0
) -> torch.Tensor:
    """Weights that do not depend on how the step is cut into ranks and micro-batches.

    token: 1 / trained tokens of the step (Yu et al. 2025, DAPO, section 3.3). rollout: the mean over attempts of each
    attempt's mean over all its samples, 1 / (attempts * trained tokens of the attempt) (Shao et al. 2024, DeepSeekMath,
    equation 3). constant: 1 / (attempts * constant_length), the same for a token of a short and of a long attempt
    (Liu et al. 2025, Dr. GRPO, section 3.2). Attempts without a trained token do not count. The first two add up to 1
    over the step.

    Args:
        loss_mask: [tokens] bool, of this rank; True where the token is trained.
        row: [tokens] int64, the row of the token's sample in `samples`.
        samples: of the whole step.
        constant_length: tokens, for `constant` only.

    Returns:
        [tokens] float32.
    """
    mask = loss_mask.double()
    if aggregation == "token":
        return (mask / samples.trained.sum().clamp(min=1)).float()
    trained = torch.bincount(samples.attempt, weights=samples.trained.double())
    attempts = (trained > 0).sum().clamp(min=1)
    if aggregation == "constant":
        assert constant_length > 0, "a constant length is a number of tokens"
        return (mask / (attempts * constant_length)).float()
    return (mask / (trained.clamp(min=1)[samples.attempt[row]] * attempts)).float()
