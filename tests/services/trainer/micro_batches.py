"""Rollouts -> the micro-batches of a step of one rank, as the trainer makes them, with the rewards for advantages."""

from collections.abc import Sequence

import torch

from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.losses.token_weights import Aggregation, token_weights
from services.trainer.packing import MicroBatch, pack, with_columns
from services.trainer.ranks import OneRank
from services.trainer.step_table import gather_table
from services.trainer.training_batch import training_batch
from shared.messages import Rollout
from tests.services.trainer.recorded_groups import rollouts


def micro_batches(
    given: Sequence[Rollout], max_tokens: int = 64, aggregation: Aggregation = "token"
) -> list[MicroBatch]:
    """The advantage of every token is the reward of its sample - 0.5."""
    batch = training_batch(list(given))
    samples = gather_table(given, OneRank())[0].samples()
    columns = TrainedTokens(
        behaviour_logprobs=batch.behaviour_logprobs,
        advantages=samples.reward.float()[batch.sample] - 0.5,
        weights=token_weights(batch.loss_mask, batch.sample, samples, aggregation),
        staleness=torch.zeros(len(batch.sample), dtype=torch.int32),
        sample=batch.sample,
        pair=batch.pair,
    )
    return with_columns(pack(batch, max_tokens), columns)


def of_groups(groups: range, max_tokens: int = 64) -> list[MicroBatch]:
    """Of recorded groups."""
    return micro_batches([rollout for group in groups for rollout in rollouts(group)], max_tokens)
