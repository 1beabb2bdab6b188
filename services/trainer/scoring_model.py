"""What every model of a run is to whatever holds it: packed sequences -> the fields of Predictions."""

import torch
from torch import nn
from transformers import PreTrainedModel

from services.trainer.losses.token_loss import Predictions
from services.trainer.packing import PackedSequences


class ScoringModel(nn.Module):
    """`forward(packed)` gives the fields of Predictions as a tuple."""

    core: PreTrainedModel
    """The part that has Hugging Face names."""


def ask(model: ScoringModel, packed: PackedSequences, device: torch.device) -> Predictions:
    """One pass, on the model's device."""
    return Predictions(*model(packed.to(device)))


def on_cpu(predictions: Predictions) -> Predictions:
    """The same on the CPU."""
    entropy, values = predictions.entropy, predictions.values
    return Predictions(
        predictions.logprobs.cpu(),
        None if entropy is None else entropy.cpu(),
        None if values is None else values.cpu(),
    )
