"""Log-probabilities of sampled tokens and their advantages -> the clipped policy loss of PPO and GRPO."""

import torch

from services.trainer.losses.token_loss import TokenLoss, TrainedTokens


def policy_clip_loss(logprobs: torch.Tensor, tokens: TrainedTokens, *, clip_low: float, clip_high: float) -> TokenLoss:
    """sum_t w_t max(-r_t A_t, -clip(r_t, 1 - clip_low, 1 + clip_high) A_t), r_t = exp(logprob_t - old_logprob_t).

    Source: Schulman et al. 2017 (PPO), equation 7, with separate bounds as in Yu et al. 2025 (DAPO), equation 10.
    `kl` is the k3 estimate of KL(behaviour || policy), r - 1 - log r (Schulman 2020, "Approximating KL divergence").
    """
    log_ratio = logprobs - tokens.old_logprobs
    ratio = log_ratio.exp()
    free = -ratio * tokens.advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * tokens.advantages
    loss = (torch.maximum(free, clipped) * tokens.weights).sum()
    with torch.no_grad():
        sums = {
            "ratio_mean": ratio.sum(),
            "clip_fraction": (clipped > free).float().sum(),
            "kl": (ratio - 1 - log_ratio).sum(),
            "logprob_diff_mean_abs": log_ratio.abs().sum(),
            "advantage_abs_mean": tokens.advantages.abs().sum(),
        }
        maxima = {"ratio_deviation_max": (ratio - 1).abs().max()} if ratio.numel() else {}
    return TokenLoss(loss, sums, maxima)
