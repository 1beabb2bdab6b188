"""Packed queries, keys and values on a GPU -> causal attention within each sequence, by one variable-length kernel."""

from inspect import signature
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
"""Elements of a head, and a multiple of 8 of them: what the kernel is built for."""
# newer versions want to be told of fewer key than query heads; the older ones' kernel takes them without a word
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def can_attend(query: torch.Tensor) -> bool:
    """Whether the kernel takes queries like this one: [tokens, heads, dim]."""
    head = query.shape[-1]
    return query.is_cuda and query.dtype in HALF and head <= LARGEST_HEAD and head % 8 == 0


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """[tokens, heads, dim] of each -> the same of the attended values; keys and values may have fewer heads.

    FlashAttention-2 (Dao 2023): the scores are never held, and nothing is padded.

    Args:
        cu_seqlens: [sequences + 1] int32, on the queries' device.
        longest: tokens of the longest sequence.
        window: a token sees itself and the window - 1 tokens before it; None: all before it.
    """
    before = window - 1 if window else -1
    q, k, v = (tensor.contiguous() for tensor in (query, key, value))
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    return cast(torch.Tensor, varlen_attn(q, k, v, *bounds, scale=scaling, window_size=(before, 0), **GROUPED))


def varlen_operator() -> Any:
    """What the kernel is called in the operators that torch dispatches."""
    return torch.ops.torch_attn._varlen_attn.default
