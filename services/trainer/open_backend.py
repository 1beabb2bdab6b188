"""A run's settings -> the model with its optimizer, and what trains one recorded step with them."""

from functools import partial
from pathlib import Path

import torch

from services.trainer.algorithm import choose_algorithm
from services.trainer.backend import Backend
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.schedule import learning_rate
from services.trainer.train_step import StepTrainer
from shared.run_settings import RunSettings


def open_backend(settings: RunSettings, device: torch.device) -> TorchBackend:
    """The run's initial model; RunRejected if it cannot be trained."""
    trainer, folder = settings.trainer, Path(settings.model.path).expanduser()
    policy = load_policy(folder, settings.model.trust_remote_code, choose_algorithm(settings).temperature, device)
    adamw = AdamW(
        (trainer.adam_beta1, trainer.adam_beta2), trainer.adam_epsilon, trainer.weight_decay, trainer.max_grad_norm
    )
    return TorchBackend(policy, getattr(torch, settings.model.dtype), adamw, folder)


def step_trainer(settings: RunSettings, backend: Backend) -> StepTrainer:
    """What trains a step of this run; everything but the rollouts and the intent is in the settings."""
    trainer = settings.trainer
    rate = partial(
        learning_rate,
        steps=trainer.steps,
        peak=trainer.learning_rate,
        warmup=trainer.warmup_steps,
        shape=trainer.schedule,
        min_ratio=trainer.min_learning_rate_ratio,
    )
    return StepTrainer(
        backend, choose_algorithm(settings), rate, trainer.max_tokens_per_micro_batch, settings.kind == "rl"
    )
