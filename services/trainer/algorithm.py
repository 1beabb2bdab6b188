"""Run settings -> the functions that make the run's advantages and loss; the only place that knows them by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from services.trainer.advantages.grpo import grpo_advantages
from services.trainer.losses.policy_clip import policy_clip_loss
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import LossFunction
from services.trainer.losses.token_weights import Aggregation
from shared.run_settings import RunSettings

AdvantageFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rewards [attempts], group [attempts]) -> advantages [attempts]."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a step learns from its attempts."""

    advantages: AdvantageFunction
    loss: LossFunction
    aggregation: Aggregation
    temperature: float
    """Of the policy whose log-probabilities the loss compares."""


def choose_algorithm(settings: RunSettings) -> Algorithm:
    """GRPO with PPO's clipping for rl, the mean over label tokens for sft."""
    trainer = settings.trainer
    if settings.kind == "sft":
        return Algorithm(_no_advantages, sft_loss, "token", 1.0)
    return Algorithm(
        partial(grpo_advantages, normalize_std=trainer.normalize_std),
        partial(policy_clip_loss, clip_low=trainer.clip_low, clip_high=trainer.clip_high),
        trainer.loss_aggregation,
        settings.rollout.sampling.temperature,
    )


def _no_advantages(rewards: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(rewards)
