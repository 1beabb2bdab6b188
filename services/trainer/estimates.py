"""Packed samples -> what the models of a run say of their tokens before the step changes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.trainer.backend import Predictor
from services.trainer.losses.token_loss import Predictions
from services.trainer.packing import PackedSequences


@dataclass(frozen=True, slots=True)
class Estimates:
    """Columns of [tokens] float32 over a rank's batch, 0 where a token is not trained; None where nothing asks."""

    proximal: torch.Tensor | None = None
    """Log-probabilities under the policy that the step starts from."""
    reference: torch.Tensor | None = None
    """Under the reference model."""
    teacher: torch.Tensor | None = None
    """Under the teacher."""
    values: torch.Tensor | None = None
    """Of the critic that the step starts from."""


@dataclass(frozen=True, slots=True)
class Estimators:
    """The models that are asked, where the algorithm wants to know."""

    policy: Predictor | None = None
    reference: Predictor | None = None
    teacher: Predictor | None = None
    critic: Predictor | None = None

    def estimate(self, packed: Sequence[PackedSequences], tokens: int) -> Estimates:
        """One forward pass of each model over all packs; every rank must bring as many."""
        return Estimates(
            proximal=_logprobs(self.policy, packed, tokens),
            reference=_logprobs(self.reference, packed, tokens),
            teacher=_logprobs(self.teacher, packed, tokens),
            values=_values(self.critic, packed, tokens),
        )


def _logprobs(model: Predictor | None, packed: Sequence[PackedSequences], tokens: int) -> torch.Tensor | None:
    if model is None:
        return None
    return _lay_out(packed, [said.logprobs for said in model.predict(list(packed))], tokens)


def _values(model: Predictor | None, packed: Sequence[PackedSequences], tokens: int) -> torch.Tensor | None:
    if model is None:
        return None
    return _lay_out(packed, [_asserted(said) for said in model.predict(list(packed))], tokens)


def _asserted(said: Predictions) -> torch.Tensor:
    assert said.values is not None, "a critic gives values"
    return said.values


def _lay_out(packed: Sequence[PackedSequences], parts: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
    column = torch.zeros(tokens)
    for pack, part in zip(packed, parts, strict=True):
        column[pack.predicted] = part
    return column
