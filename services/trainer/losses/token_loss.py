"""What every loss takes and gives: predictions of the trained tokens -> a scalar, and sums for the metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the model that learns says of the trained tokens of a micro-batch; every tensor is [tokens] float32."""

    logprobs: torch.Tensor
    """With gradient. A critic has values instead, and these are empty."""
    entropy: torch.Tensor | None = None
    """In nats, of the whole distribution that the token was drawn from; with gradient; None unless it is asked for."""
    values: torch.Tensor | None = None
    """A critic's, of the state before the token; with gradient."""


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Columns of the trained tokens of a micro-batch; every tensor is [tokens] and carries no gradient."""

    behaviour_logprobs: torch.Tensor
    """Of the policy that sampled the token, as the engine told them; each token under its own weight version."""
    advantages: torch.Tensor
    weights: torch.Tensor
    """Share of each token in the step's loss: the denominators, taken over the whole step and all ranks."""
    staleness: torch.Tensor
    """int32: weight versions between the one that sampled the token and the one that the step starts from."""
    sample: torch.Tensor
    """int64: which sample of the step the token belongs to; its tokens stand together, never in two micro-batches."""
    proximal_logprobs: torch.Tensor | None = None
    """Of the policy that the step starts from, by the trainer; None: the predictions are that policy's."""
    reference_logprobs: torch.Tensor | None = None
    """Of the frozen reference model."""
    correction: torch.Tensor | None = None
    """Weight of the token where it is known before the step; None: the loss works it out."""
    returns: torch.Tensor | None = None
    """What a critic learns."""
    old_values: torch.Tensor | None = None
    """Of the critic that the step starts from."""
    pair: torch.Tensor | None = None
    """int64: 2 p for the chosen and 2 p + 1 for the rejected answer of pair p, both in the same micro-batch."""


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A micro-batch's part of the step's loss; the parts of all micro-batches add up to it."""

    loss: torch.Tensor
    sums: Values = field(default_factory=Values)
    """Metrics to be added up over micro-batches and divided by the number of trained tokens."""
    maxima: Values = field(default_factory=Values)
    """Metrics whose largest value over micro-batches counts; 0 where there is no token."""
    totals: Values = field(default_factory=Values)
    """Metrics that are added up over micro-batches and not divided: weighted like the loss, they are means already."""


LossFunction = Callable[[Predictions, TrainedTokens], TokenLoss]
"""(predictions of the trained tokens by the model that learns; their columns) -> its loss."""


def entropy_sum(predictions: Predictions) -> Values:
    """The metric `entropy`, where it is known."""
    return {} if predictions.entropy is None else {"entropy": predictions.entropy.detach().sum()}
