"""Log-probabilities of sampled tokens under two policies and their advantages -> the clipped objective of PPO."""

import torch

from services.trainer.losses.objective import TokenObjective, bounded_exp, ratio_metrics


def ppo_clip(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    sample: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> TokenObjective:
    """max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) for each token, r = exp(logprob - old_logprob).

    Source: Schulman et al. 2017 (PPO), equation 7, with separate bounds as in Yu et al. 2025 (DAPO), equation 10.
    `sample` is not read: every token has a ratio of its own.
    """
    ratio = bounded_exp(logprobs - old_logprobs)
    return clipped_objective(ratio, advantages, clip_low, clip_high, dual_clip)


def clipped_objective(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenObjective:
    """The pessimistic one of the free and the clipped objective; with `dual_clip` no worse than -dual_clip A if A < 0.

    Source of the dual clip: Ye et al. 2020 (Mastering complex control in MOBA games), its dual-clip PPO.
    """
    free = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(free, clipped)
    sums, maxima = ratio_metrics(ratio, clipped > free)
    if dual_clip is not None:
        limit = -dual_clip * advantages
        is_beyond = (advantages < 0) & (loss > limit)
        loss = torch.where(is_beyond, limit, loss)
        sums["dual_clip_fraction"] = is_beyond.float().sum()
    return TokenObjective(loss, sums, maxima)
