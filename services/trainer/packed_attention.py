"""Queries, keys and values of packed sequences -> causal attention within each, for any Hugging Face causal LM."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from services.trainer.attention_batches import encode, plan_batches
from services.trainer.attention_kernels import has_padded_kernel
from services.trainer.batched_attention import batched_attention, can_batch
from services.trainer.to_device import to_device
from services.trainer.varlen_attention import can_attend, varlen_attention
from shared.errors import RunRejected

NAME = "sluice_packed"
"""The `attn_implementation` to load a model with; its forward then needs `packed=plan_attention(lengths)`."""
SLACK = 0.8
"""Sequences share a padded batch while the shortest has at least this share of the longest's tokens."""
SHORT = 16
"""Differences of so few tokens are not worth a batch of their own."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring sequences of similar length, attended to as one padded batch."""

    first: int
    """Position of the first token in the packed micro-batch."""
    tokens: int
    sequences: int
    longest: int
    slots: torch.Tensor | None
    """[tokens] int64: where each token goes among sequences * longest padded places; None if all are full."""

    def to(self, device: torch.device) -> "Bucket":
        slots = None if self.slots is None else to_device(self.slots, device)
        return Bucket(self.first, self.tokens, self.sequences, self.longest, slots)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where the sequences of a packed micro-batch lie, in the three forms that attention is computed from."""

    cu_seqlens: torch.Tensor
    """[sequences + 1] int32: sequence i lies at cu_seqlens[i] .. cu_seqlens[i + 1]."""
    longest: int
    """Tokens of the longest sequence."""
    buckets: tuple[Bucket, ...]
    batches: torch.Tensor
    """What `attention_batches.encode` gave, on the CPU on every device."""
    is_batched: bool = False
    """Whether the device has kernels for padded batches that are worth it."""

    def to(self, device: torch.device) -> "AttentionPlan":
        """The same on another device."""
        buckets = tuple(bucket.to(device) for bucket in self.buckets)
        cu_seqlens = to_device(self.cu_seqlens, device)
        return AttentionPlan(cu_seqlens, self.longest, buckets, self.batches, has_padded_kernel(device))


def plan_attention(lengths: list[int]) -> AttentionPlan:
    """Boundaries, and buckets of neighbours of similar length; a list that is sorted by length wastes the least."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return AttentionPlan(ends, max(lengths), _buckets(lengths), encode(plan_batches(lengths)))


def _buckets(lengths: list[int]) -> tuple[Bucket, ...]:
    groups: list[list[int]] = []
    shortest = longest = 0
    for length in lengths:
        low, high = min(shortest, length), max(longest, length)
        if not groups or (low < SLACK * high and high - low > SHORT):
            groups.append([])
            low = high = length
        groups[-1].append(length)
        shortest, longest = low, high
    buckets: list[Bucket] = []
    first = 0
    for group in groups:
        buckets.append(_bucket(first, group))
        first += sum(group)
    return tuple(buckets)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: AttentionPlan | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer: [1, heads, tokens, dim] each -> [1, tokens, heads, dim].

    On a GPU in half precision by a kernel that takes the boundaries as they are, or by one for padded batches where
    that is faster; elsewhere bucket by bucket.
    """
    assert packed is not None, "the model was called without packed=plan_attention(lengths)"
    assert attention_mask is None and query.shape[0] == 1, "packed attention takes one row of tokens and no mask"
    for name in ("softcap", "s_aux"):
        if extra.get(name) is not None:
            raise RunRejected(
                f"{type(module).__name__} attends with {name}, which packed training has not; choose another model"
            )
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if can_attend(q) and packed.is_batched and can_batch(q, sliding_window):
        attended = batched_attention(q, k, v, packed.cu_seqlens, packed.batches, scaling)
    elif can_attend(q):
        attended = varlen_attention(q, k, v, packed.cu_seqlens, packed.longest, scaling, sliding_window)
    else:
        attended = _attend_buckets(packed, q, k, v, scaling, sliding_window)
    return attended.unsqueeze(0), None


@torch.compiler.disable(reason="buckets differ from pack to pack")  # pyright: ignore[reportUntypedFunctionDecorator]
def _attend_buckets(
    packed: AttentionPlan,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    return torch.cat([_attend(bucket, query, key, value, scaling, window) for bucket in packed.buckets])


def _attend(
    bucket: Bucket,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Rows are [tokens, heads, dim]; padding stands after a sequence's tokens, where causality hides it from them."""
    padded = [_pad(bucket, rows).transpose(1, 2) for rows in (query, key, value)]
    mask = _band(bucket.longest, window, query.device) if window and window < bucket.longest else None
    attended = functional.scaled_dot_product_attention(
        *padded, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    flat = attended.transpose(1, 2).reshape(-1, *query.shape[1:])
    return flat if bucket.slots is None else flat.index_select(0, bucket.slots)


def _pad(bucket: Bucket, rows: torch.Tensor) -> torch.Tensor:
    own = rows[bucket.first : bucket.first + bucket.tokens]
    if bucket.slots is not None:
        own = own.new_zeros(bucket.sequences * bucket.longest, *own.shape[1:]).index_copy(0, bucket.slots, own)
    return own.reshape(bucket.sequences, bucket.longest, *own.shape[1:])


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length] bool: a token sees itself and the window - 1 tokens before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def _bucket(first: int, lengths: list[int]) -> Bucket:
    longest, tokens = max(lengths), sum(lengths)
    if tokens == longest * len(lengths):
        return Bucket(first, tokens, len(lengths), longest, None)
    sizes = torch.tensor(lengths)
    shift = torch.arange(len(lengths)) * longest - (sizes.cumsum(0) - sizes)
    slots = torch.arange(tokens) + torch.repeat_interleave(shift, sizes)
    return Bucket(first, tokens, len(lengths), longest, slots)


AttentionInterface.register(NAME, packed_attention)
