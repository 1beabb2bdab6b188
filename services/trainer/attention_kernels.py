"""Queries, keys and values on a GPU -> attended values by one kernel of torch, and their gradients by its counterpart.

Rows are [tokens, heads, dim] for packs and [sequences, longest, heads, dim] for padded batches, contiguous; keys and
values may have fewer heads. Attention is causal. A log-sum-exp of the scores is kept for the backward pass.
"""

from typing import Any

import torch

aten: Any = torch.ops.aten
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
GENERATIONS = (9, 10)
"""Of GPUs, Hopper and Blackwell: the kernel for packs is one of the generation before."""
FIRST_CUDNN = 90501
"""The first that takes a gradient laid out as it comes, and fewer key than query heads in both passes."""
LARGEST_HEAD = 128


def has_padded_kernel(device: torch.device) -> bool:
    """Whether attention by padded batches is the faster one there; it adds up gradients in no fixed order."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] in GENERATIONS
        and (torch.backends.cudnn.version() or 0) >= FIRST_CUDNN
        and not torch.are_deterministic_algorithms_enabled()
    )


def padded_forward(rows: list[torch.Tensor], scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """cuDNN's -> attended values like the queries, log-sum-exp [sequences, heads, longest] float32."""
    given = [tensor.transpose(1, 2) for tensor in rows]
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention.default(*given, None, True, 0.0, True, False, scale=scale)
    return out.transpose(1, 2).contiguous(), lse.reshape(lse.shape[:3])


def padded_backward(
    upstream: torch.Tensor,
    rows: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float | None,
) -> Gradients:
    """The gradients of queries, keys and values, each like `rows`."""
    longest = out.shape[1]
    upstream, query, key, value, out = (tensor.transpose(1, 2) for tensor in (upstream, *rows, out))
    # without dropout nothing is read from the random state
    state = torch.empty((), dtype=torch.int64, device=out.device)
    nothing = None, None, None  # bias, and boundaries of queries and keys
    given = (upstream, query, key, value, out, lse[..., None].contiguous(), state, state, *nothing, longest, longest)
    grads = aten._scaled_dot_product_cudnn_attention_backward.default(*given, 0.0, True, scale=scale)
    query, key, value = (grad.transpose(1, 2).contiguous() for grad in grads)
    return query, key, value


def packed_forward(
    rows: list[torch.Tensor], cu_seqlens: torch.Tensor, longest: int, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention-2's -> attended values like the queries, log-sum-exp [heads, tokens] float32."""
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    out, lse, *_ = aten._flash_attention_forward.default(
        *rows, *bounds, 0.0, True, False, scale=scale, window_size_left=-1, window_size_right=0
    )
    return out, lse


def packed_backward(
    upstream: torch.Tensor,
    rows: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    scale: float | None,
) -> Gradients:
    """The gradients of queries, keys and values, each like `rows`."""
    state = torch.zeros(2, dtype=torch.uint64, device=out.device), torch.empty(0, device=out.device)
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    return aten._flash_attention_backward.default(
        upstream, *rows, out, lse, *bounds, 0.0, True, *state, scale=scale, window_size_left=-1, window_size_right=0
    )
