"""Lengths -> random attempts of a step, laid out by the trainer's own code, and the columns of a clipped loss."""

import numpy as np
import torch

from services.trainer.advantages.grpo import grpo_advantages
from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import Rollout

GROUP_SIZE = 4
CLIP = 0.2


def random_batch(lengths: list[int], vocabulary: int, seed: int) -> TrainingBatch:
    """Every token but the first of each sample is trained, so all that a step computes is counted."""
    random = np.random.default_rng(seed)
    return training_batch([_rollout(i, n, vocabulary, random) for i, n in enumerate(lengths)])


def columns_of(batch: TrainingBatch, seed: int) -> TrainedTokens:
    """Columns of [tokens] over the batch: GRPO's advantages of random rewards, and the mean over trained tokens."""
    random = torch.Generator().manual_seed(seed)
    samples, tokens = len(batch.lengths), len(batch.token_ids)
    rewards = torch.randint(0, 2, (samples,), generator=random).double()
    advantages = grpo_advantages(rewards, torch.arange(samples) // GROUP_SIZE, True).float()
    return TrainedTokens(
        behaviour_logprobs=batch.behaviour_logprobs,
        advantages=advantages[batch.sample],
        weights=batch.loss_mask / batch.loss_mask.sum(),
        staleness=torch.zeros(tokens, dtype=torch.int32),
        sample=batch.sample,
    )


def clipped_loss(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
    """max(-r A, -clip(r) A), weighted (Schulman et al. 2017, PPO, equation 7); for the product and its peer alike."""
    ratio = (predictions.logprobs - tokens.behaviour_logprobs).exp()
    free, clipped = -ratio * tokens.advantages, -ratio.clamp(1 - CLIP, 1 + CLIP) * tokens.advantages
    return TokenLoss((torch.maximum(free, clipped) * tokens.weights).sum())


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
