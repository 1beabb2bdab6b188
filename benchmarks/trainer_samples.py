"""Lengths -> random attempts of a step, laid out by the trainer's own code, and the columns and loss of GRPO."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.samples import Samples
from services.trainer.losses.policy_loss import PolicyLoss
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.losses.token_weights import token_weights
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import Rollout

GROUP_SIZE = 4
GRPO_LOSS = PolicyLoss(partial(ppo_clip, clip_low=0.2, clip_high=0.2))
"""For the product and its peer alike."""


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What a step trains; made before its time is taken, as in a run the samples come from elsewhere."""

    batch: TrainingBatch
    columns: TrainedTokens
    seed: int


def random_samples(lengths: list[int], vocabulary: int, seed: int) -> StepSamples:
    """Of the step of this number."""
    batch = random_batch(lengths, vocabulary, seed)
    return StepSamples(batch, columns_of(batch, seed), seed)


def random_batch(lengths: list[int], vocabulary: int, seed: int) -> TrainingBatch:
    """Every token but the first of each sample is trained, so all that a step computes is counted."""
    random = np.random.default_rng(seed)
    return training_batch([_rollout(i, n, vocabulary, random) for i, n in enumerate(lengths)])


def columns_of(batch: TrainingBatch, seed: int) -> TrainedTokens:
    """Columns of [tokens] over the batch: advantages of random rewards, and the mean over trained tokens."""
    samples = _samples(batch, seed)
    return TrainedTokens(
        behaviour_logprobs=batch.behaviour_logprobs,
        advantages=grpo(samples).float()[batch.sample],
        weights=token_weights(batch.loss_mask, batch.sample, samples, "token"),
        staleness=torch.zeros(len(batch.token_ids), dtype=torch.int32),
        sample=batch.sample,
    )


def _samples(batch: TrainingBatch, seed: int) -> Samples:
    random, number = torch.Generator().manual_seed(seed), torch.arange(len(batch.lengths))
    return Samples(
        reward=torch.randint(0, 2, (len(number),), generator=random).double(),
        group=number // GROUP_SIZE,
        attempt=number,
        dataset=torch.zeros_like(number),
        trained=torch.bincount(batch.sample, weights=batch.loss_mask.double()).long(),
    )


def _rollout(number: int, length: int, vocabulary: int, random: np.random.Generator) -> Rollout:
    ids = random.integers(0, vocabulary, length).astype(np.int32)
    generated = length - 1
    return Rollout(
        group_id=number // GROUP_SIZE,
        attempt=number % GROUP_SIZE,
        group_size=GROUP_SIZE,
        kind="train",
        dataset="random",
        row=number,
        prompt="",
        label=None,
        metadata={},
        prompt_ids=ids[:1],
        token_ids=ids[1:],
        logprobs=np.full(generated, -np.log(vocabulary), np.float32),
        loss_mask=[(1, generated)],
        weight_versions=[(0, generated)],
        finish_reason="length",
        text="",
        worker="benchmark",
        seconds=0.0,
    )
