"""Log-probabilities of sampled tokens under two policies -> the objective of GSPO, clipped by sequence."""

import torch

from services.trainer.losses.objective import LOG_RATIO_BOUND, TokenObjective
from services.trainer.losses.ppo_clip import clipped_objective
from services.trainer.sequence_sums import sequence_means


def gspo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    sample: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> TokenObjective:
    """PPO's clipping with s_t = sg(s) exp(logprob_t - sg(logprob_t)), s = exp(mean over the sample of the log ratio).

    Source: Zheng et al. 2025 (GSPO), equations 5 and 7 and, for the token form, equations 13 and 14: its value is that
    of GSPO, and so is its gradient where all tokens of a sample have the same advantage and weight; tokens may have
    their own. sg stops the gradient. The mean is over the trained tokens of the sample.
    """
    log_ratio = sequence_means((logprobs - old_logprobs).detach(), sample)
    own = logprobs - logprobs.detach()
    ratio = (log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND) + own).exp()
    return clipped_objective(ratio, advantages, clip_low, clip_high, dual_clip)
