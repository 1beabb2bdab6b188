"""A rank's batch and what models say of it -> the columns that a step's losses read, but for the weights."""

import torch

from services.trainer.advantages.samples import Samples
from services.trainer.advantages.token_advantages import Learned, RankTokens
from services.trainer.algorithm import Algorithm
from services.trainer.corrections.correct_step import correct_step
from services.trainer.estimates import Estimates
from services.trainer.explained_variance import explained_variance
from services.trainer.losses.token_loss import TrainedTokens, Values
from services.trainer.ranks import Ranks
from services.trainer.training_batch import NO_VERSION, TrainingBatch
from shared.errors import RunRejected

Noted = dict[str, float]
"""Metrics by name."""


def step_columns(
    algorithm: Algorithm,
    batch: TrainingBatch,
    samples: Samples,
    row: torch.Tensor,
    estimates: Estimates,
    weight_version: int,
    ranks: Ranks,
) -> tuple[TrainedTokens, Noted]:
    """Columns of [tokens] over the batch, and the metrics of making them; every rank must make the call.

    Args:
        row: [tokens] int64, the row of the token's sample in `samples`.
        weight_version: the one that the step starts from.
    """
    learned = _learned(algorithm, batch, samples, row, estimates, ranks)
    columns = TrainedTokens(
        behaviour_logprobs=batch.behaviour_logprobs,
        advantages=learned.advantages.float(),
        weights=torch.zeros(len(row)),
        staleness=torch.where(batch.versions == NO_VERSION, 0, weight_version - batch.versions).int(),
        sample=batch.sample,
        proximal_logprobs=estimates.proximal,
        reference_logprobs=estimates.reference,
        returns=None if learned.returns is None else learned.returns.float(),
        old_values=estimates.values,
        pair=batch.pair,
    )
    sums = dict(learned.sums)
    if algorithm.normalized_correction is not None:
        columns, weighed = correct_step(algorithm.normalized_correction, columns, batch.loss_mask, ranks.sum)
        sums |= weighed
    return columns, {**_means(sums, int(samples.trained.sum()), ranks), **_explained(columns, batch.loss_mask, ranks)}


def _learned(
    algorithm: Algorithm,
    batch: TrainingBatch,
    samples: Samples,
    row: torch.Tensor,
    estimates: Estimates,
    ranks: Ranks,
) -> Learned:
    if algorithm.plan is None:
        return Learned(torch.zeros(len(row), dtype=torch.float64), None, Values())
    teacher = _recorded_teacher(batch) if algorithm.is_teacher_served else estimates.teacher
    said = RankTokens(row, batch.loss_mask, estimates.proximal, estimates.reference, teacher, estimates.values)
    return algorithm.plan.advantages(samples, said, ranks.sum)


def _recorded_teacher(batch: TrainingBatch) -> torch.Tensor:
    if batch.teacher_logprobs is None:
        raise RunRejected(
            "trainer.distillation.url names a teacher that these attempts were recorded without; write"
            " trainer.distillation.teacher, the folder of a model, which is asked when a step is trained"
        )
    return batch.teacher_logprobs


def _means(sums: Values, tokens: int, ranks: Ranks) -> Noted:
    return {name: float(ranks.sum(value.double())) / max(tokens, 1) for name, value in sorted(sums.items())}


def _explained(columns: TrainedTokens, mask: torch.Tensor, ranks: Ranks) -> Noted:
    if columns.returns is None or columns.old_values is None:
        return {}
    return explained_variance(columns.returns[mask], columns.old_values[mask], ranks.sum)
