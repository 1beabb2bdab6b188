"""What the loop needs of whatever holds the model: one optimizer step, the weights by name, its state, an export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from services.trainer.losses.token_loss import LossFunction
from services.trainer.packing import MicroBatch

State = dict[str, dict[str, torch.Tensor]]
"""File name (without ending) -> tensors by name; everything that a step depends on."""


class Backend(Protocol):
    """A model, its optimizer and its place; the loss is given to it, and it knows none by name."""

    def train_step(
        self, micro_batches: list[MicroBatch], loss: LossFunction, learning_rate: float, seed: int
    ) -> dict[str, float]:
        """One optimizer step over all micro-batches; metrics of the loss, `grad_norm` and `step_skipped`."""
        ...

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights under their Hugging Face names, on their device, tied ones once."""
        ...

    def state(self) -> State:
        """References to all state, to be written before the next step."""
        ...

    def load_state(self, state: State) -> None:
        """Take over the state of a checkpoint; RunRejected if a tensor is missing, left over or of another shape."""
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder: config, weights, tokenizer."""
        ...
