"""A run's settings -> its models on this rank, with everything that the loop asks of them."""

from collections.abc import Iterator
from pathlib import Path

import torch

from services.trainer.backend import Backend, State
from services.trainer.share_step import Share
from services.trainer.train_step import StepTrainer
from shared.messages import Rollout, StepIntent


class Learner:
    """One rank's part of the models that a run trains. All ranks make the same calls in the same order."""

    def __init__(self, policy: Backend, trainer: StepTrainer) -> None:
        self._policy, self._trainer = policy, trainer

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """One recorded step; `rollouts` are this rank's, as `share` says. Its metrics but for the times."""
        return self._trainer.train(rollouts, intent, share)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole policy under its Hugging Face names, on its device; see Backend."""
        return self._policy.named_tensors()

    def state(self) -> State:
        """References to all state of this rank, to be copied before the next step."""
        return self._policy.state()

    def load_state(self, state: State) -> None:
        """RunRejected if a tensor is missing, left over or of another shape."""
        self._policy.load_state(state)

    def export(self, folder: Path) -> None:
        """Rank 0 writes the policy as a Hugging Face folder."""
        self._policy.export(folder)
