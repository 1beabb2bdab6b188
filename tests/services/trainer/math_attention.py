"""What the kernels of `attention_kernels` compute, by the formulas of attention, on any device and in any precision."""

import itertools

import torch

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def padded_forward(rows: list[torch.Tensor], scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = _heads_first(rows)
    scores = _scores(query, key, scale)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), scores.logsumexp(-1)


def padded_backward(
    upstream: torch.Tensor, rows: list[torch.Tensor], out: torch.Tensor, lse: torch.Tensor, scale: float | None
) -> Gradients:
    """Dao et al. 2022 (FlashAttention), appendix B: probabilities come from the log-sum-exp that was kept."""
    kv_heads = rows[1].shape[2]
    query, key, value = _heads_first(rows)
    over = upstream.transpose(1, 2)
    shares = (_scores(query, key, scale) - lse[..., None]).exp()
    inner = (over * out.transpose(1, 2)).sum(-1, keepdim=True)
    slopes = shares * (over @ value.mT - inner) * _scale(query, scale)
    of_key, of_value = (t.unflatten(1, (kv_heads, -1)).sum(2) for t in (slopes.mT @ query, shares.mT @ over))
    query, key, value = (t.transpose(1, 2).contiguous() for t in (slopes @ key, of_key, of_value))
    return query, key, value


def packed_forward(
    rows: list[torch.Tensor], cu_seqlens: torch.Tensor, longest: int, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    made = [padded_forward([tensor[own][None] for tensor in rows], scale) for own in _slices(cu_seqlens, longest)]
    outs, lses = zip(*made, strict=True)
    return torch.cat(outs, 1)[0], torch.cat(lses, -1)[0].contiguous()


def packed_backward(
    upstream: torch.Tensor,
    rows: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    scale: float | None,
) -> Gradients:
    made = [
        padded_backward(upstream[own][None], [t[own][None] for t in rows], out[own][None], lse[None, :, own], scale)
        for own in _slices(cu_seqlens, longest)
    ]
    query, key, value = (torch.cat(parts, 1)[0] for parts in zip(*made, strict=True))
    return query, key, value


def _slices(cu_seqlens: torch.Tensor, longest: int) -> list[slice]:
    bounds: list[int] = cu_seqlens.tolist()
    slices = [slice(first, end) for first, end in itertools.pairwise(bounds)]
    assert bounds[0] == 0
    assert max(own.stop - own.start for own in slices) == longest
    return slices


def _heads_first(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """[sequences, longest, heads, dim] -> [sequences, query heads, longest, dim]."""
    heads = rows[0].shape[2]
    return [t.transpose(1, 2).repeat_interleave(heads // t.shape[2], 1) for t in rows]


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float | None) -> torch.Tensor:
    scores = query @ key.mT * _scale(query, scale)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale
