"""A step's attempts -> packed micro-batches under a token budget: no padding between them, no sequence cut."""

from dataclasses import dataclass

import torch

from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.packed_attention import Bucket, plan_attention
from services.trainer.training_batch import TrainingBatch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Whole attempts one after the other, longest first; `tokens` is the sum of their lengths."""

    token_ids: torch.Tensor
    """[tokens] int64."""
    position_ids: torch.Tensor
    """[tokens] int64, counted from 0 in each attempt."""
    cu_seqlens: torch.Tensor
    """[attempts + 1] int32: attempt i lies at cu_seqlens[i] .. cu_seqlens[i + 1]."""
    attention: tuple[Bucket, ...]
    """How attention takes the attempts apart."""
    rows: torch.Tensor
    """[trained] int64: positions whose prediction, the next token, is trained."""
    targets: torch.Tensor
    """[trained] int64: the tokens to be predicted there."""
    trained: TrainedTokens
    """Columns of those tokens."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device."""
        trained = self.trained
        return MicroBatch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            cu_seqlens=self.cu_seqlens.to(device),
            attention=tuple(bucket.to(device) for bucket in self.attention),
            rows=self.rows.to(device),
            targets=self.targets.to(device),
            trained=TrainedTokens(
                trained.old_logprobs.to(device),
                trained.advantages.to(device),
                trained.weights.to(device),
                trained.versions.to(device),
                trained.attempt.to(device),
            ),
        )


def pack(batch: TrainingBatch, advantages: torch.Tensor, weights: torch.Tensor, max_tokens: int) -> list[MicroBatch]:
    """Cut a step into micro-batches; attempts without a trained token are left out.

    Args:
        advantages: [tokens] float32, in the order of the batch.
        weights: [tokens] float32, shares of the step's loss.
        max_tokens: budget of a micro-batch; an attempt that is longer goes alone.
    """
    counts = torch.bincount(batch.attempt, weights=batch.loss_mask.double(), minlength=len(batch.lengths))
    wanted = torch.nonzero(counts > 0).flatten()
    # neighbours of similar length make micro-batches that attention can take apart with little padding
    order = wanted[torch.argsort(batch.lengths[wanted], descending=True, stable=True)]
    sizes: list[int] = batch.lengths[order].tolist()
    return [
        _micro_batch(batch, advantages, weights, order[start:end]) for start, end in balanced_parts(sizes, max_tokens)
    ]


def balanced_parts(lengths: list[int], max_tokens: int) -> list[tuple[int, int]]:
    """Ranges of neighbours: as few as the budget allows, and of those the one whose largest part is smallest."""
    if not lengths:
        return []
    fewest = len(_greedy_parts(lengths, max_tokens))
    low, high = 1, max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_greedy_parts(lengths, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _greedy_parts(lengths, high)


def _greedy_parts(lengths: list[int], max_tokens: int) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []
    start = filled = 0
    for index, length in enumerate(lengths):
        if index > start and filled + length > max_tokens:
            parts.append((start, index))
            start, filled = index, 0
        filled += length
    return [*parts, (start, len(lengths))]


def _micro_batch(
    batch: TrainingBatch, advantages: torch.Tensor, weights: torch.Tensor, attempts: torch.Tensor
) -> MicroBatch:
    lengths = batch.lengths[attempts]
    ends = lengths.cumsum(0)
    position_ids = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - lengths, lengths)
    first = (batch.lengths.cumsum(0) - batch.lengths)[attempts]
    source = torch.repeat_interleave(first, lengths) + position_ids
    # position i predicts token i + 1, and no first token is trained, so a trained token's predictor precedes it here
    rows = torch.nonzero(batch.loss_mask[source]).flatten() - 1
    predicted = source[rows + 1]
    return MicroBatch(
        token_ids=batch.token_ids[source],
        position_ids=position_ids,
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]).int(),
        attention=plan_attention(lengths.tolist()),
        rows=rows,
        targets=batch.token_ids[predicted],
        trained=TrainedTokens(
            old_logprobs=batch.old_logprobs[predicted],
            advantages=advantages[predicted],
            weights=weights[predicted],
            versions=batch.versions[predicted],
            attempt=batch.attempt[predicted],
        ),
    )
