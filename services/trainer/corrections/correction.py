"""What every off-policy correction takes and gives."""

from collections.abc import Callable

import torch

from services.trainer.losses.token_loss import Values

CorrectionFunction = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Values]
]
"""(proximal, behaviour, advantages, staleness, sample), each [trained tokens] -> weight [trained tokens], metric sums.

`proximal` and `behaviour` are log-probabilities, as in TrainedTokens; nothing here has a gradient.
"""
