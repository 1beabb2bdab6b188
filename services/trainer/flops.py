"""A model's configuration and the lengths of samples -> floating-point operations of training them, for MFU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel

PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}
"""Dense bfloat16 operations a second by the vendors' data sheets, by a part of the device's name."""

ALL_LEARN, FROZEN = 6.0, 4.0
"""Operations of a weight and token: 2 forward, 2 for the gradient of what it is multiplied with, 2 for its own."""


@dataclass(frozen=True, slots=True)
class TrainingFlops:
    """Model FLOPs of forward and backward pass (Chowdhery et al. 2022, PaLM, appendix B); recompute is not counted."""

    matrices: int
    """Weights that every token is multiplied with: all matrices but the embedding's look-up."""
    attention_width: int
    """Sum over layers of heads * head_dim."""
    by_weight: float = ALL_LEARN
    """Operations of each weight and token."""

    def of(self, lengths: Sequence[int]) -> float:
        """`by_weight` a weight and token, and 6 * attention_width * n^2 for causal attention in a sample of n tokens.

        Both products of attention, scores and values, take 2 * width operations for each of the n^2 / 2 pairs
        forward, and twice that backward.
        """
        return self.by_weight * self.matrices * sum(lengths) + 6.0 * self.attention_width * sum(n * n for n in lengths)


def training_flops(model: PreTrainedModel, by_weight: float = ALL_LEARN) -> TrainingFlops:
    """What the shapes of a model say; mixtures of experts count the experts that a token is sent to."""
    config = cast(Any, model.config.get_text_config())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embedding = cast(torch.Tensor, cast(Any, model).get_input_embeddings().weight)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and ".experts." not in name)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    chosen = getattr(config, "num_experts_per_tok", 1) / max(getattr(config, "num_experts", 1) or 1, 1)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    matrices += int(experts * chosen) - (0 if tied else embedding.numel())
    return TrainingFlops(matrices, config.num_hidden_layers * config.num_attention_heads * head_dim, by_weight)


def peak_flops(device: torch.device) -> float | None:
    """Of a GPU whose data sheet is known here; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
