"""Lengths of a pack's sequences -> which of them a GPU attends to as padded batches, and which as they are packed.

Kernels for padded batches are up to twice as fast as those for packs, but want copies of what is not of full length.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

PACKED_MS = (1.0, 0.72)
"""Milliseconds of a forward and backward pass over 16,384 packed tokens: for sequences of length 0, and for each 1,000
tokens that they are longer. Measured by `benchmarks.attention` on an H100, with 16 heads of 128 and 8 of keys; only
the ratios between these four matter, and those are much the same for other models."""
PADDED_MS = (0.75, 0.37)
"""The same for a padded batch."""
COPIES_MS = 0.45
"""Of the same tokens into a padded batch and out of it, in both passes."""
BATCH_MS = 0.05
"""A batch of its own, however small."""
TOKENS = 16384
STEP = 128
"""Padded lengths are multiples of it, and longer ones of up to 1/16 of themselves: a shape that has not been seen yet
costs a tenth of a second, so there must not be many."""
SHORTEST = 256
"""Tokens that the first of a batch has at least; what is shorter stays packed without a calculation."""
FULLEST = 0.75
"""A batch with a smaller share of tokens in it is not worth a look at larger ones."""


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Neighbours in a pack."""

    longest: int
    """Tokens that each is padded to; 0 if they stay packed."""
    lengths: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def is_full(self) -> bool:
        """Whether the packed tokens are the padded batch already."""
        return self.longest * len(self.lengths) == self.tokens


def plan_batches(lengths: list[int]) -> list[AttentionBatch]:
    """In the order of `lengths`; what saves time is padded, two packed neighbours are one."""
    batches: list[AttentionBatch] = []
    start = 0
    while start < len(lengths):
        found = _best(lengths, start)
        start += len(found.lengths)
        if batches and not found.longest and not batches[-1].longest:
            batches[-1].lengths.extend(found.lengths)
        else:
            batches.append(found)
    return batches


def encode(batches: list[AttentionBatch]) -> torch.Tensor:
    """[2 * batches + sequences] int64: in compiled code a tensor stands for all plans, numbers each for themselves."""
    return torch.tensor([n for batch in batches for n in (batch.longest, len(batch.lengths), *batch.lengths)])


def decode(encoded: torch.Tensor) -> list[AttentionBatch]:
    """What `encode` was given."""
    numbers: list[int] = encoded.tolist()
    batches: list[AttentionBatch] = []
    place = 0
    while place < len(numbers):
        longest, count = numbers[place : place + 2]
        batches.append(AttentionBatch(longest, numbers[place + 2 : place + 2 + count]))
        place += 2 + count
    return batches


def first_tokens(batches: list[AttentionBatch]) -> list[int]:
    """Where each batch begins in the pack."""
    ends = [0]
    for batch in batches:
        ends.append(ends[-1] + batch.tokens)
    return [first for first, _ in pairwise(ends)]


def padded_length(length: int) -> int:
    """The next one on the grid."""
    step = max(STEP, 1 << max(0, length.bit_length() - 5))
    return -(-length // step) * step


def _best(lengths: list[int], start: int) -> AttentionBatch:
    """1, 2, 4 .. sequences from `start` on in the padded batch that saves the most, or one packed sequence."""
    best, saved = AttentionBatch(0, lengths[start : start + 1]), 0.0
    if lengths[start] < SHORTEST:
        return best
    count = 1
    while start + count <= len(lengths):
        batch = AttentionBatch(padded_length(max(lengths[start : start + count])), lengths[start : start + count])
        if batch.tokens < FULLEST * batch.longest * count:
            break
        saving = _packed_ms(batch.lengths) - _padded_ms(batch)
        if saving > saved:
            best, saved = batch, saving
        count *= 2
    return best


def _packed_ms(lengths: list[int]) -> float:
    return sum(n * (PACKED_MS[0] + PACKED_MS[1] * n / 1000) for n in lengths) / TOKENS


def _padded_ms(batch: AttentionBatch) -> float:
    each = PADDED_MS[0] + PADDED_MS[1] * batch.longest / 1000 + (0.0 if batch.is_full else COPIES_MS)
    return BATCH_MS + each * batch.longest * len(batch.lengths) / TOKENS
