"""What the loop needs of whatever holds a model: predictions, optimizer steps, the weights by name, state, export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from services.trainer.losses.token_loss import LossFunction, Predictions
from services.trainer.packing import MicroBatch, PackedSequences

State = dict[str, dict[str, torch.Tensor]]
"""Part (weights, optimizer, random) -> tensors by name; everything that a step depends on."""


class Predictor(Protocol):
    """A model that is asked and does not learn."""

    def predict(self, packed: list[PackedSequences]) -> list[Predictions]:
        """What the model says now, without gradients, on the CPU; one for each pack."""
        ...


class Backend(Predictor, Protocol):
    """A model, its optimizer and its place; the loss is given to it, and it knows none by name.

    Where several ranks hold the model, every rank makes the same calls in the same order.
    """

    def train_step(
        self, micro_batches: list[MicroBatch], loss: LossFunction, learning_rate: float | None, seed: int
    ) -> dict[str, float]:
        """One optimizer step over all micro-batches of all ranks; returns the metrics of the loss, and beside them
        `grad_norm`, `step_skipped` and `seconds_optimizer`.

        Without a learning rate the metrics are made and nothing moves.
        """
        ...

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights under their Hugging Face names, on their device, tied ones once; the same on every rank."""
        ...

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that takes memory between steps: weights, and what the optimizer keeps; some may come twice."""
        ...

    def state(self) -> State:
        """References to all state of this rank, to be copied before the next step."""
        ...

    def load_state(self, state: State) -> None:
        """Take over a state; RunRejected if a tensor is missing, left over or of another shape."""
        ...

    def export(self, folder: Path) -> None:
        """Rank 0 writes a Hugging Face folder: config, weights, tokenizer."""
        ...
