"""The loop's calls on rank 0 -> orders to the other ranks, then the same call here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.trainer.backend import State
from services.trainer.checkpoint import Checkpoint, Checkpoints, Writing
from services.trainer.learner import Learner
from services.trainer.orders import Orders
from services.trainer.share_step import Share
from shared.messages import Codec, Rollout, StepIntent


class LeadLearner:
    """A Learner whose calls all ranks make."""

    def __init__(self, own: Learner, orders: Orders) -> None:
        self._own, self._orders = own, orders

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        with self._orders.together("train", intent=Codec[StepIntent](StepIntent).encode(intent)):
            return self._own.train(rollouts, intent, share)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        with self._orders.together("gather"):
            yield from self._own.named_tensors()

    def tensors(self) -> Iterator[torch.Tensor]:
        return self._own.tensors()

    def state(self) -> State:
        return self._own.state()

    def load_state(self, state: State) -> None:
        self._own.load_state(state)

    def export(self, folder: Path) -> None:
        with self._orders.together("export", folder=str(folder)):
            self._own.export(folder)


@dataclass(frozen=True, slots=True)
class LeadCheckpoints(Checkpoints):
    """Checkpoints that all ranks write and read."""

    orders: Orders | None = None

    def begin(self, step: int, state: State, about: Mapping[str, Any] | None = None) -> Writing:
        assert self.orders is not None
        with self.orders.together("save", step=step):
            return Checkpoints.begin(self, step, state, about)

    def fill(self, checkpoint: Checkpoint, state: State) -> None:
        assert self.orders is not None
        with self.orders.together("load", step=checkpoint.step):
            Checkpoints.fill(self, checkpoint, state)
