"""A rank's samples -> packed micro-batches under a token budget: no padding between them, no sequence cut."""

from dataclasses import dataclass, fields
from typing import Any, cast

import torch

from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.packed_attention import AttentionPlan, plan_attention
from services.trainer.to_device import to_device
from services.trainer.training_batch import TrainingBatch


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Whole samples one after the other, longest first; `tokens` is the sum of their lengths."""

    token_ids: torch.Tensor
    """[tokens] int64."""
    position_ids: torch.Tensor
    """[tokens] int64, counted from 0 in each sample."""
    attention: AttentionPlan
    """Where the samples lie, and how attention takes them apart."""
    rows: torch.Tensor
    """[trained] int64: positions whose prediction, the next token, is trained."""
    targets: torch.Tensor
    """[trained] int64: the tokens to be predicted there."""
    predicted: torch.Tensor
    """[trained] int64, on the CPU: where those tokens stand in the batch."""

    def to(self, device: torch.device) -> "PackedSequences":
        """The same on another device."""
        return PackedSequences(
            token_ids=to_device(self.token_ids, device),
            position_ids=to_device(self.position_ids, device),
            attention=self.attention.to(device),
            rows=to_device(self.rows, device),
            targets=to_device(self.targets, device),
            predicted=self.predicted,
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass."""

    packed: PackedSequences
    trained: TrainedTokens
    """Columns of its trained tokens, in the order of `packed.rows`."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(self.packed.to(device), select(self.trained, slice(None), device))


def with_columns(packed: list[PackedSequences], columns: TrainedTokens) -> list[MicroBatch]:
    """Give each pack the rows of its trained tokens from columns of [tokens] over the whole batch."""
    return [MicroBatch(part, select(columns, part.predicted, part.token_ids.device)) for part in packed]


def select(columns: TrainedTokens, rows: torch.Tensor | slice, device: torch.device) -> TrainedTokens:
    """The same columns of these rows only."""
    given: dict[str, torch.Tensor | None] = {field.name: getattr(columns, field.name) for field in fields(columns)}
    chosen = {k: None if v is None else to_device(v[rows], device) for k, v in given.items()}
    return TrainedTokens(**cast(dict[str, Any], chosen))


def pack(
    batch: TrainingBatch, max_tokens: int, chosen: torch.Tensor | None = None, pairs: bool = False
) -> list[PackedSequences]:
    """Cut a rank's samples into micro-batches; samples without a trained token are left out.

    Args:
        max_tokens: budget of a micro-batch; a sample, or pair, that is longer goes alone.
        chosen: [samples] bool, to pack only these.
        pairs: keep the samples of a pair in one micro-batch.
    """
    counts = torch.bincount(batch.sample, weights=batch.loss_mask.double(), minlength=len(batch.lengths))
    trained = counts > 0
    wanted = torch.nonzero(trained if chosen is None else trained & chosen).flatten()
    units = _units(batch, wanted, pairs)
    sizes = [int(batch.lengths[unit].sum()) for unit in units]
    return [_pack(batch, _by_length(batch, units[start:end])) for start, end in balanced_parts(sizes, max_tokens)]


def _units(batch: TrainingBatch, wanted: torch.Tensor, pairs: bool) -> list[torch.Tensor]:
    """What stays together, the longest first: neighbours of similar length leave attention little padding."""
    if not len(wanted):
        return []  # `split` would make one empty part of nothing
    if not pairs:
        return list(wanted[torch.argsort(batch.lengths[wanted], descending=True, stable=True)].unsqueeze(1))
    first = (batch.lengths.cumsum(0) - batch.lengths)[wanted]
    pair = batch.pair[first] // 2
    units = [wanted[pair == number] for number in pair.unique().tolist()]
    return sorted(units, key=lambda unit: -int(batch.lengths[unit].sum()))


def _by_length(batch: TrainingBatch, units: list[torch.Tensor]) -> torch.Tensor:
    samples = torch.cat(units)
    return samples[torch.argsort(batch.lengths[samples], descending=True, stable=True)]


def idle_pack() -> PackedSequences:
    """Two tokens, none of them trained: what a rank computes while others have more micro-batches than it."""
    ids, nothing = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return PackedSequences(ids, torch.arange(2), plan_attention([2]), nothing, nothing, nothing)


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


def _pack(batch: TrainingBatch, samples: torch.Tensor) -> PackedSequences:
    lengths = batch.lengths[samples]
    ends = lengths.cumsum(0)
    position_ids = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - lengths, lengths)
    first = (batch.lengths.cumsum(0) - batch.lengths)[samples]
    source = torch.repeat_interleave(first, lengths) + position_ids
    # position i predicts token i + 1, and no first token is trained, so a trained token's predictor precedes it here
    rows = torch.nonzero(batch.loss_mask[source]).flatten() - 1
    predicted = source[rows + 1]
    return PackedSequences(
        token_ids=batch.token_ids[source],
        position_ids=position_ids,
        attention=plan_attention(lengths.tolist()),
        rows=rows,
        targets=batch.token_ids[predicted],
        predicted=predicted,
    )
