"""The name of a shape or of a row -> the sizes and FLOPs of a Qwen3 model, and the lengths of a step's samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from services.trainer.flops import TrainingFlops

Kind = Literal["2k", "16k", "mixed"]
MICRO_BATCHES = 4
"""A step has so many token budgets of samples, so that gradients are added up over micro-batches as in a run."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model with tied embeddings, and how far the lengths of the rows are scaled down for it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    shorter: int = 1
    """Lengths are divided by this."""

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch."""
        return 16384 // self.shorter

    def matrices(self) -> int:
        """Weights that a token is multiplied with: those of the layers, and the head."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward) + self.hidden * self.vocabulary

    def flops(self) -> TrainingFlops:
        """As the trainer counts its own; tied embeddings are multiplied with once, as the head."""
        return TrainingFlops(self.matrices(), self.layers * self.heads * self.head_dim)


SHAPES = {
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151936),
    "tiny": Shape(64, 2, 4, 2, 16, 128, 512, shorter=64),
}


def lengths_of(kind: Kind, shape: Shape) -> list[int]:
    """Tokens of each sample of a step: all 2,048, all 16,384, or long-tailed with a median of 1,024, cut at 16,384."""
    tokens = MICRO_BATCHES * shape.budget
    if kind != "mixed":
        each = {"2k": 2048, "16k": 16384}[kind] // shape.shorter
        return [each] * (tokens // each)
    random = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        drawn = int(random.lognormal(np.log(1024), 1.0)) // shape.shorter
        lengths.append(min(max(drawn, 2), shape.budget, max(2, tokens - sum(lengths))))
    return lengths


def write_model(shape: Shape, folder: Path, device: torch.device) -> None:
    """A Hugging Face folder with random weights in bfloat16, without a tokenizer."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
