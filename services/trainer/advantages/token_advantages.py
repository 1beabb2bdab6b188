"""Rewards of a step's samples and what models say of a rank's tokens -> the advantage of each of those tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from services.trainer.advantages.distill import distill
from services.trainer.advantages.gae import gae
from services.trainer.advantages.reinforce_plus_plus import reinforce_plus_plus
from services.trainer.advantages.samples import Samples
from services.trainer.advantages.token_rewards import kl_penalty, token_rewards
from services.trainer.advantages.whiten import whiten
from services.trainer.losses.kl import KlEstimator, kl_estimate
from services.trainer.losses.token_loss import Values

ScalarEstimator = Callable[[Samples], torch.Tensor]
"""The samples of the step over all ranks -> [samples] float64: one advantage for all tokens of a sample."""
Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over ranks."""


@dataclass(frozen=True, slots=True)
class RankTokens:
    """A rank's tokens of a step, one sample after the other; every tensor is [tokens]."""

    row: torch.Tensor
    """int64: which row of the step's samples the token belongs to."""
    mask: torch.Tensor
    """bool: the token is trained."""
    policy: torch.Tensor | None = None
    """Log-probabilities under the policy that the step starts from; where a reference or a teacher is asked."""
    reference: torch.Tensor | None = None
    """Under the reference."""
    teacher: torch.Tensor | None = None
    """Under the teacher."""
    values: torch.Tensor | None = None
    """By the critic that the step starts from."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a step makes of its rewards; every tensor is [tokens] float64 and 0 where a token is not trained."""

    advantages: torch.Tensor
    returns: torch.Tensor | None
    """What a critic learns; None without one."""
    sums: Values
    """Metrics of this rank, to be summed over ranks and divided by the number of trained tokens."""


@dataclass(frozen=True, slots=True)
class AdvantagePlan:
    """How rewards become advantages: by sample or by token, less a divergence, towards a teacher, whitened."""

    estimator: ScalarEstimator | Literal["reinforce_plus_plus", "gae"]
    gamma: float = 1.0
    gae_lambda: float = 1.0
    kl_coef: float = 0.0
    """Reward that a nat of divergence from the reference costs."""
    kl_estimator: KlEstimator = "k1"
    distillation_coef: float = 0.0
    whitening: Literal["none", "step", "dataset"] = "none"

    def advantages(self, samples: Samples, tokens: RankTokens, reduce: Reduce) -> Learned:
        """Of this rank's tokens; every rank makes the call, also one without tokens."""
        found, returns = self._estimate(samples, tokens)
        sums = Values()
        if self.distillation_coef:
            student, teacher = _known(tokens.policy, "the policy"), _known(tokens.teacher, "the teacher")
            found = distill(found, student, teacher, tokens.mask, self.distillation_coef)
            sums["teacher_kl"] = (student - teacher)[tokens.mask].double().sum()
        if self.whitening != "none":
            by_dataset = self.whitening == "dataset" and samples.dataset.numel() > 0
            part = samples.dataset[tokens.row] if by_dataset else torch.zeros_like(tokens.row)
            found = whiten(found, tokens.mask, part, int(samples.dataset.max()) + 1 if by_dataset else 1, reduce)
        return Learned(found, returns, sums)

    def _estimate(self, samples: Samples, tokens: RankTokens) -> tuple[torch.Tensor, torch.Tensor | None]:
        penalty = self._penalty(tokens)
        if callable(self.estimator):
            of_sample = self.estimator(samples).double()[tokens.row]
            return torch.where(tokens.mask, of_sample, 0.0) + penalty, None
        rewards = token_rewards(samples.reward, penalty, tokens.mask, tokens.row)
        if self.estimator == "reinforce_plus_plus":
            return reinforce_plus_plus(rewards, tokens.mask, tokens.row, self.gamma), None
        values = _known(tokens.values, "the critic")
        return gae(rewards, values, tokens.mask, tokens.row, self.gamma, self.gae_lambda)

    def _penalty(self, tokens: RankTokens) -> torch.Tensor:
        if not self.kl_coef:
            return torch.zeros(len(tokens.mask), dtype=torch.float64, device=tokens.mask.device)
        policy, reference = _known(tokens.policy, "the policy"), _known(tokens.reference, "the reference")
        return kl_penalty(kl_estimate(policy, reference, self.kl_estimator), tokens.mask, self.kl_coef)


def _known(column: torch.Tensor | None, model: str) -> torch.Tensor:
    assert column is not None, f"the plan needs what {model} says of the tokens"
    return column
