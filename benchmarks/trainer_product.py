"""A model's folder -> steps by the trainer's own backend: packed, in bfloat16, with float32 weights and AdamW."""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.trainer_samples import GRPO_LOSS, columns_of, random_batch
from benchmarks.trainer_shapes import Shape
from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.packing import pack, with_columns

LEARNING_RATE = 1e-6


def product_step(
    folder: Path, shape: Shape, lengths: list[int], device: torch.device, is_compiled: bool, recompute: bool
) -> Callable[[int], dict[str, float]]:
    """(number of the step) -> its metrics; every step has other tokens, and samples that are packed anew."""
    policy = load_policy(folder, False, 1.0, device)
    if recompute:
        recompute_layers(policy.core)
    if is_compiled:
        compile_model(policy, policy.core, recompute)
    backend = TorchBackend(policy, torch.bfloat16, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder)

    def step(number: int) -> dict[str, float]:
        batch = random_batch(lengths, shape.vocabulary, number)
        micro_batches = with_columns(pack(batch, shape.budget), columns_of(batch, number))
        return backend.train_step(micro_batches, GRPO_LOSS, LEARNING_RATE, number)

    return step
