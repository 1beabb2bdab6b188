"""A pack's queries, keys and values -> causal attention within each sequence, by padded batches where that is faster.

One operator, whatever the batches are, so that one compiled graph serves every pack.
"""

from typing import Any, cast

import torch

from services.trainer import attention_kernels as kernels
from services.trainer.attention_batches import AttentionBatch, decode, first_tokens

aten: Any = torch.ops.aten
Gradients = kernels.Gradients


def can_batch(query: torch.Tensor, window: int | None) -> bool:
    """Whether the kernels for padded batches take half-precision queries like these: [tokens, heads, dim]."""
    return not window and query.shape[-1] <= kernels.LARGEST_HEAD


def batched_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    batches: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """[tokens, heads, dim] of each -> the same of the attended values; keys and values may have fewer heads.

    Args:
        cu_seqlens: [sequences + 1] int32, on the queries' device.
        batches: what `encode` made of the plan, on the CPU.
    """
    rows = (tensor.contiguous() for tensor in (query, key, value))
    return cast(torch.Tensor, _attend(*rows, cu_seqlens, batches, scaling)[0])


def batched_operator() -> Any:
    """What attention is called in the operators that torch dispatches."""
    return torch.ops.sluice.batched_attention.default


@torch.library.custom_op("sluice::batched_attention", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    batches: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attended values, and the log-sum-exp of the scores, [heads * tokens] batch by batch."""
    made: list[list[torch.Tensor]] = []
    sequence = 0
    plan = decode(batches)
    for batch, first in zip(plan, first_tokens(plan), strict=True):
        rows = _own(batch, first, query, key, value)
        if batch.longest:
            padded = [_pad(batch, tensor) for tensor in rows]
            out, lse = kernels.padded_forward(padded, scale)
            # [sequences, heads, longest]: heads last, as in the rows that padding is taken from
            made.append([_unpad(batch, out), _unpad(batch, lse.transpose(1, 2)).flatten()])
        else:
            bounds = _bounds(batch, cu_seqlens, sequence)
            out, lse = kernels.packed_forward(rows, bounds, max(batch.lengths), scale)
            made.append([out, lse.flatten()])
        sequence += len(batch.lengths)
    out, lse = _joined(made)
    return out, lse


@torch.library.custom_op("sluice::batched_attention_backward", mutates_args=())
def _differentiate(
    upstream: torch.Tensor,
    rows: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    batches: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `rows`: queries, keys and values."""
    made: list[list[torch.Tensor]] = []
    heads, sequence = out.shape[1], 0
    plan = decode(batches)
    for batch, first in zip(plan, first_tokens(plan), strict=True):
        own_lse = lse[first * heads : (first + batch.tokens) * heads]
        if batch.longest:
            padded_upstream, padded_out, *padded = (_pad(batch, t) for t in _own(batch, first, upstream, out, *rows))
            # padding has no gradient, and 0 stands for its log-sum-exp: its share of every gradient is 0
            padded_lse = _pad(batch, own_lse.reshape(-1, heads)).transpose(1, 2)
            grads = kernels.padded_backward(padded_upstream, padded, padded_out, padded_lse, scale)
            made.append([_unpad(batch, grad) for grad in grads])
        else:
            own_upstream, own_out, *own = _own(batch, first, upstream, out, *rows)
            bounds = _bounds(batch, cu_seqlens, sequence)
            given = (own_upstream, own, own_out, own_lse.reshape(heads, -1), bounds, max(batch.lengths), scale)
            made.append(list(kernels.packed_backward(*given)))
        sequence += len(batch.lengths)
    query, key, value = _joined(made)
    return query, key, value


@_attend.register_fake
def _(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[0] * query.shape[1], dtype=torch.float32)


@_differentiate.register_fake
def _(_: torch.Tensor, rows: list[torch.Tensor], *__: Any) -> Gradients:
    return torch.empty_like(rows[0]), torch.empty_like(rows[1]), torch.empty_like(rows[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    query, key, value, cu_seqlens, batches, out, lse = ctx.saved_tensors
    given = (upstream.contiguous(), [query, key, value], out, lse, cu_seqlens, batches, ctx.scale)
    return (*_differentiate(*given), None, None, None)


_attend.register_autograd(_backward, setup_context=_keep)


def _own(batch: AttentionBatch, first: int, *rows: torch.Tensor) -> list[torch.Tensor]:
    return [tensor[first : first + batch.tokens] for tensor in rows]


def _bounds(batch: AttentionBatch, cu_seqlens: torch.Tensor, sequence: int) -> torch.Tensor:
    own = cu_seqlens[sequence : sequence + len(batch.lengths) + 1]
    return own - own[0] if sequence else own


def _pad(batch: AttentionBatch, rows: torch.Tensor) -> torch.Tensor:
    """[tokens, ...] -> [sequences, longest, ...], with zeros behind a sequence, where causality hides them from it."""
    shape = (len(batch.lengths), batch.longest, *rows.shape[1:])
    if batch.is_full:
        return rows.reshape(shape)
    padded = rows.new_empty(shape)
    places = padded.flatten(0, 1).split(_places(batch))
    aten._foreach_copy_(list(places[::2]), list(rows.split(batch.lengths)))
    aten._foreach_zero_([behind for behind in places[1::2] if len(behind)])
    return padded


def _unpad(batch: AttentionBatch, padded: torch.Tensor) -> torch.Tensor:
    """What `_pad` was given."""
    flat = padded.flatten(0, 1)
    return flat if batch.is_full else torch.cat(flat.split(_places(batch))[::2])


def _places(batch: AttentionBatch) -> list[int]:
    """Tokens and padding of each sequence in turn."""
    return [n for length in batch.lengths for n in (length, batch.longest - length)]


def _joined(made: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Of every column the parts, one after the other."""
    return made[0] if len(made) == 1 else [torch.cat(parts) for parts in zip(*made, strict=True)]
