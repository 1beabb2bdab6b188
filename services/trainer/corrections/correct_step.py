"""Columns of a rank's tokens -> their off-policy weights before the step, with mean 1 over all ranks."""

from collections.abc import Callable
from dataclasses import replace

import torch

from services.trainer.corrections.combine import weight_metrics
from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.corrections.normalize import normalize
from services.trainer.losses.token_loss import TrainedTokens, Values


def correct_step(
    correction: CorrectionFunction,
    columns: TrainedTokens,
    mask: torch.Tensor,
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[TrainedTokens, Values]:
    """The same columns with `correction`, and the metric sums of this rank.

    Args:
        columns: [tokens] of all of a rank's tokens, with `proximal_logprobs`.
        mask: [tokens] bool, True where the token is trained.
        reduce: sums a tensor over ranks; called once on every rank, also where a rank has no trained token.
    """
    proximal = columns.proximal_logprobs
    assert proximal is not None, "weights before the step need the policy that it starts from"
    trained = (proximal, columns.behaviour_logprobs, columns.advantages, columns.staleness, columns.sample)
    own, sums = correction(*(column[mask] for column in trained))
    own = normalize(own, reduce)
    weight = torch.zeros_like(columns.weights)
    weight[mask] = own.to(weight.dtype)
    return replace(columns, correction=weight), {**sums, **weight_metrics(own)}
