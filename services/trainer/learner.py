"""A run's models on one rank, as its loop sees them: train a step, give the weights, be written and read, export."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from services.trainer.backend import Backend, State
from services.trainer.frozen_model import FrozenModel
from services.trainer.share_step import Share
from services.trainer.train_step import StepTrainer
from shared.errors import RunRejected
from shared.messages import Rollout, StepIntent

CRITIC, REFERENCE = "critic_", "reference"


@dataclass(frozen=True, slots=True)
class Reference:
    """The model that the policy is to stay near."""

    model: FrozenModel
    refresh_every: int
    """Steps after which it becomes the policy of that moment; 0 never."""


class Learner(Protocol):
    """The models that a run trains. All ranks make the same calls in the same order."""

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """One recorded step; `rollouts` are this rank's, as `share` says. Returns its metrics."""
        ...

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole policy under its Hugging Face names, on its device; see Backend."""
        ...

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of this rank that takes memory between steps, of every model; some may come twice."""
        ...

    def state(self) -> State:
        """References to all state of this rank, to be copied before the next step."""
        ...

    def load_state(self, state: State) -> None:
        """RunRejected if a tensor is missing, left over or of another shape."""
        ...

    def export(self, folder: Path) -> None:
        """Rank 0 writes the policy as a Hugging Face folder."""
        ...


class RankLearner:
    """One rank's part of the models."""

    def __init__(
        self,
        policy: Backend,
        trainer: StepTrainer,
        critic: Backend | None = None,
        reference: Reference | None = None,
        frozen: Sequence[FrozenModel] = (),
    ) -> None:
        """`frozen`: every model that is asked and never trained, the reference included."""
        self._frozen = frozen
        self._policy, self._trainer, self._critic = policy, trainer, critic
        self._refreshed = reference if reference is not None and reference.refresh_every else None

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """See Learner."""
        metrics = self._trainer.train(rollouts, intent, share)
        if self._refreshed is not None and intent.step % self._refreshed.refresh_every == 0:
            self._refreshed.model.take(self._policy.state()["weights"])
        return metrics

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See Learner."""
        return self._policy.named_tensors()

    def tensors(self) -> Iterator[torch.Tensor]:
        """See Learner."""
        trained = [self._policy] if self._critic is None else [self._policy, self._critic]
        for model in (*trained, *self._frozen):
            yield from model.tensors()

    def state(self) -> State:
        """See Learner."""
        critic = self._critic.state() if self._critic is not None else {}
        moved = {REFERENCE: self._refreshed.model.weights()} if self._refreshed is not None else {}
        return {**self._policy.state(), **{f"{CRITIC}{part}": critic[part] for part in critic}, **moved}

    def load_state(self, state: State) -> None:
        """See Learner."""
        for part in sorted(self.state().keys() ^ state.keys()):
            side = "holds the unknown" if part in state else "misses"
            raise RunRejected(f"the state {side} part {part}; it belongs to a run that trains other models")
        policy = {p: tensors for p, tensors in state.items() if not p.startswith(CRITIC) and p != REFERENCE}
        self._policy.load_state(policy)
        if self._critic is not None:
            self._critic.load_state({p.removeprefix(CRITIC): t for p, t in state.items() if p.startswith(CRITIC)})
        if self._refreshed is not None:
            self._refreshed.model.take(state[REFERENCE])

    def export(self, folder: Path) -> None:
        """See Learner."""
        self._policy.export(folder)
