"""An objective, an off-policy correction, a divergence from the reference and an entropy bonus -> the policy's loss."""

from dataclasses import dataclass
from typing import Literal

import torch

from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.losses.by_staleness import nats_by_staleness
from services.trainer.losses.kl import KlEstimator, kl_estimate, unbiased
from services.trainer.losses.objective import Objective, k3
from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens, Values, entropy_sum

OldPolicy = Literal["behaviour", "proximal"]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """sum_t w_t (c_t objective_t + kl_coef KL_t - entropy_coef H_t); called, it is a LossFunction.

    The old policy of the objective is the one that sampled (`behaviour`), or the one that the step starts from
    (`proximal`), which leaves the way from the first to the second to the correction c: decoupled PPO, Hilton et al.
    2022 (Batch size-invariance for policy optimization), section 3.
    """

    objective: Objective
    old_policy: OldPolicy = "behaviour"
    correction: CorrectionFunction | None = None
    """Asked where the column `correction` is not known before the step."""
    mask: CorrectionFunction | None = None
    """Asked at every update, with what the policy says then in the place of the proximal log-probabilities."""
    kl_estimator: KlEstimator = "k3"
    kl_coef: float = 0.0
    is_kl_unbiased: bool = False
    entropy_coef: float = 0.0

    def __call__(self, predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
        """One micro-batch, which may be empty."""
        logprobs = predictions.logprobs
        known = tokens.proximal_logprobs
        proximal = logprobs.detach() if known is None else known
        old = tokens.behaviour_logprobs if self.old_policy == "behaviour" else proximal
        found = self.objective(logprobs, old, tokens.advantages, tokens.sample)
        weight, corrected = self._masked(logprobs.detach(), tokens, *self._correction(proximal, tokens))
        kl, diverged = self._kl(logprobs, old, tokens.reference_logprobs)
        each = found.loss if weight is None else found.loss * weight
        each = each + self.kl_coef * kl if self.kl_coef else each
        each = each - self.entropy_coef * self._entropy(predictions) if self.entropy_coef else each
        sums = {**found.sums, **corrected, **diverged, **_distances(logprobs.detach(), tokens)}
        stale = nats_by_staleness((logprobs.detach() - tokens.behaviour_logprobs).abs(), tokens.staleness)
        return TokenLoss((each * tokens.weights).sum(), {**sums, **entropy_sum(predictions)}, found.maxima, stale)

    def _correction(self, proximal: torch.Tensor, tokens: TrainedTokens) -> tuple[torch.Tensor | None, Values]:
        if tokens.correction is not None or self.correction is None:
            return tokens.correction, {}
        return self.correction(proximal, tokens.behaviour_logprobs, tokens.advantages, tokens.staleness, tokens.sample)

    def _masked(
        self, now: torch.Tensor, tokens: TrainedTokens, weight: torch.Tensor | None, sums: Values
    ) -> tuple[torch.Tensor | None, Values]:
        if self.mask is None:
            return weight, sums
        kept, counted = self.mask(now, tokens.behaviour_logprobs, tokens.advantages, tokens.staleness, tokens.sample)
        return kept if weight is None else weight * kept, {**sums, **counted}

    def _kl(
        self, logprobs: torch.Tensor, old: torch.Tensor, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, Values]:
        """The term of the loss, and the metric of the plain estimate wherever a reference is known."""
        if reference is None:
            assert not self.kl_coef, "a divergence in the loss needs the reference's log-probabilities"
            return logprobs, {}
        kl = kl_estimate(logprobs, reference, self.kl_estimator)
        term = unbiased(kl, logprobs, old) if self.is_kl_unbiased else kl
        return term, {"kl_reference": kl.detach().sum()}

    def _entropy(self, predictions: Predictions) -> torch.Tensor:
        assert predictions.entropy is not None, "an entropy bonus needs the entropy"
        return predictions.entropy


def _distances(logprobs: torch.Tensor, tokens: TrainedTokens) -> Values:
    """How far the policy is from the one that sampled, by k3 = r - 1 - log r and by log-probability."""
    gap = logprobs - tokens.behaviour_logprobs
    return {
        "kl": k3(gap).sum(),
        "logprob_diff_mean_abs": gap.abs().sum(),
        "advantage_abs_mean": tokens.advantages.abs().sum(),
    }
