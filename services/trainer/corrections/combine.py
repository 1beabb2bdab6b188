"""Several corrections -> one whose weight is their product, with the metrics of what it does and why."""

from collections.abc import Sequence

import torch

from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.losses.objective import bounded_exp, k3
from services.trainer.losses.token_loss import Values


def combine(parts: Sequence[CorrectionFunction]) -> CorrectionFunction:
    """A token that one part rejects is rejected; denominators stay, so that a rejected token counts as 0."""

    @torch.no_grad()
    def combined(
        proximal: torch.Tensor,
        behaviour: torch.Tensor,
        advantages: torch.Tensor,
        staleness: torch.Tensor,
        sample: torch.Tensor,
    ) -> tuple[torch.Tensor, Values]:
        weight, clipped = torch.ones_like(behaviour), Values()
        for part in parts:
            factor, sums = part(proximal, behaviour, advantages, staleness, sample)
            weight, clipped = weight * factor, {**clipped, **sums}
        return weight, {**clipped, **weight_metrics(weight), **mismatch(proximal, behaviour)}

    return combined


def weight_metrics(weight: torch.Tensor) -> Values:
    """Sums over tokens of the final weights, and of where they are 0."""
    return {"correction_mean": weight.sum(), "rejected_fraction": (weight == 0).float().sum()}


def mismatch(proximal: torch.Tensor, behaviour: torch.Tensor) -> Values:
    """Sums over tokens of estimates of KL(behaviour || proximal) in nats, and of the chi-square divergence.

    With g = proximal - behaviour: k1 = -g and k3 = exp(g) - 1 - g (Schulman 2020, "Approximating KL divergence"), and
    exp(2 g) - 1, which is the variance of importance weights.
    """
    gap = proximal - behaviour
    return {
        "mismatch_kl": -gap.sum(),
        "mismatch_k3": k3(gap).sum(),
        "mismatch_chi_square": (bounded_exp(gap).square() - 1).sum(),
    }
