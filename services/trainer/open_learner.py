"""A run's settings -> its models on this rank and what trains recorded steps with them."""

from functools import partial
from pathlib import Path

import torch

from services.trainer.algorithm import choose_algorithm
from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.learner import Learner
from services.trainer.load_model import load_policy
from services.trainer.ranks import OneRank, Ranks
from services.trainer.schedule import learning_rate
from services.trainer.train_step import StepTrainer
from shared.run_settings import RunSettings


def open_learner(settings: RunSettings, device: torch.device, ranks: Ranks | None = None) -> Learner:
    """The run's initial models; RunRejected if they cannot be trained."""
    ranks = ranks or OneRank()
    trainer, folder = settings.trainer, Path(settings.model.path).expanduser()
    algorithm = choose_algorithm(settings)
    policy = load_policy(folder, settings.model.trust_remote_code, algorithm.temperature, device, algorithm.entropy)
    if trainer.recompute:
        recompute_layers(policy.core)
    if trainer.compile:
        compile_model(policy, policy.core, trainer.recompute)
    backend = TorchBackend(policy, getattr(torch, settings.model.dtype), adamw_of(settings), folder, ranks)
    rate = partial(
        learning_rate,
        steps=trainer.steps,
        peak=trainer.learning_rate,
        warmup=trainer.warmup_steps,
        shape=trainer.schedule,
        min_ratio=trainer.min_learning_rate_ratio,
    )
    steps = StepTrainer(backend, algorithm, rate, trainer.max_tokens_per_gpu, settings.kind == "rl", ranks)
    return Learner(backend, steps)


def adamw_of(settings: RunSettings) -> AdamW:
    """The optimizer of the policy."""
    trainer = settings.trainer
    betas = (trainer.adam_beta1, trainer.adam_beta2)
    return AdamW(betas, trainer.adam_epsilon, trainer.weight_decay, trainer.max_grad_norm, trainer.offload_optimizer)
