"""Log-probabilities of sampled tokens under two policies -> the objective of CISPO, which clips weights, not slopes."""

import torch

from services.trainer.losses.objective import TokenObjective, bounded_exp, ratio_metrics


def cispo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    sample: torch.Tensor,
    *,
    clip_low: float | None,
    clip_high: float,
) -> TokenObjective:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprob for each token, r = exp(logprob - old_logprob).

    Source: MiniMax 2025 (MiniMax-M1), equations 4 and 5. sg stops the gradient, so a clipped token still learns, with
    a bounded weight. `clip_low` None is no lower bound, as in the paper's experiments. `sample` is not read.
    """
    ratio = bounded_exp((logprobs - old_logprobs).detach())
    weight = ratio.clamp(min=0.0 if clip_low is None else 1 - clip_low, max=1 + clip_high)
    sums, maxima = ratio_metrics(ratio, weight != ratio)
    return TokenObjective(-weight * advantages * logprobs, sums, maxima)
