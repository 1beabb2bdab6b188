"""What every loss takes and gives: log-probabilities of the trained tokens -> a scalar, and sums for the metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Columns of the trained tokens of a micro-batch; every tensor is [tokens] and carries no gradient."""

    old_logprobs: torch.Tensor
    """Of the policy that sampled the token."""
    advantages: torch.Tensor
    weights: torch.Tensor
    """Share of each token in the step's loss: the denominators, taken over the whole step."""
    versions: torch.Tensor
    """int32: the weight version that sampled the token."""
    attempt: torch.Tensor
    """Which attempt of the step the token belongs to; an attempt is never spread over micro-batches."""


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A micro-batch's part of the step's loss; the parts of all micro-batches add up to it."""

    loss: torch.Tensor
    sums: Values = field(default_factory=Values)
    """Metrics to be added up over micro-batches and divided by the number of trained tokens."""
    maxima: Values = field(default_factory=Values)
    """Metrics whose largest value over micro-batches counts."""


LossFunction = Callable[[torch.Tensor, TrainedTokens], TokenLoss]
"""(log-probabilities of the trained tokens under the policy that learns, [tokens]; their columns) -> its loss."""
