"""A model's folder -> steps by the trainer's own backend: packed, in bfloat16, with float32 weights and AdamW."""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.trainer_samples import GRPO_LOSS, StepSamples
from benchmarks.trainer_shapes import Shape
from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.packing import pack, with_columns

LEARNING_RATE = 1e-6


def product_step(
    folder: Path, shape: Shape, device: torch.device, is_compiled: bool, recompute: bool
) -> Callable[[StepSamples], dict[str, float]]:
    """(samples of a step) -> its metrics; packing, and copies to the device, are a part of every step."""
    policy = load_policy(folder, False, 1.0, device)
    if recompute:
        recompute_layers(policy.core)
    if is_compiled:
        compile_model(policy, policy.core, recompute)
    backend = TorchBackend(policy, torch.bfloat16, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder)

    def step(samples: StepSamples) -> dict[str, float]:
        micro_batches = with_columns(pack(samples.batch, shape.budget), samples.columns)
        return backend.train_step(micro_batches, GRPO_LOSS, LEARNING_RATE, samples.seed)

    return step
