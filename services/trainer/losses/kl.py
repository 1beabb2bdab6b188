"""Log-probabilities of sampled tokens under the policy and a reference -> estimates of the divergence at each token."""

from collections.abc import Callable
from typing import Literal

import torch

from services.trainer.losses.objective import bounded_exp, k3

KlEstimator = Literal["k1", "k2", "k3", "low_var"]
LOW_VAR_BOUND = 10.0


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """One-sample estimates of KL(policy || reference) in nats, with gradient; [tokens].

    With d = logprob - reference_logprob: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020, "Approximating KL
    divergence"); low_var is k3 within +-10. As a loss the gradient of k1 is 0 on average on-policy, that of k2 is the
    divergence's, and that of k3 is the divergence's where the two policies are close.
    """
    return _ESTIMATORS[estimator](logprobs - reference_logprobs)


def unbiased(kl: torch.Tensor, logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """r kl with r = exp(logprob - old_logprob), both with gradient: unbiased also for tokens of an older policy.

    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), equation 7.
    """
    return bounded_exp(logprobs - old_logprobs) * kl


_ESTIMATORS: dict[KlEstimator, Callable[[torch.Tensor], torch.Tensor]] = {
    "k1": lambda gap: gap,
    "k2": lambda gap: gap.square() / 2,
    "k3": lambda gap: k3(-gap),
    "low_var": lambda gap: k3(-gap).clamp(-LOW_VAR_BOUND, LOW_VAR_BOUND),
}
