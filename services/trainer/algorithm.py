"""Run settings -> the functions that make the run's advantages and loss; the only place that knows them by name."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from services.trainer.advantages.group_baseline import group_baseline
from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.rloo import rloo
from services.trainer.advantages.token_advantages import AdvantagePlan, ScalarEstimator
from services.trainer.choose_loss import choose_correction, choose_loss, is_own
from services.trainer.corrections.correction import CorrectionFunction
from services.trainer.losses.dpo import dpo_loss
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import LossFunction
from services.trainer.losses.token_weights import Aggregation
from services.trainer.losses.value_loss import value_loss
from services.trainer.own_functions import own_advantages
from services.trainer.token_scores import Entropy
from shared.run_settings import RunSettings
from shared.trainer_settings import TrainerSettings


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a step learns from its samples, and what it needs to know of them before it begins."""

    loss: LossFunction
    aggregation: Aggregation
    temperature: float = 1.0
    """Of the policy whose log-probabilities the loss compares."""
    constant_length: int = 0
    """For aggregation `constant`."""
    updates_per_step: int = 1
    epochs: int = 1
    plan: AdvantagePlan | None = None
    """From rewards to advantages; None where there are no rewards."""
    value_loss: LossFunction | None = None
    """The critic's; None without one."""
    critic_steps: int = 0
    """First steps, in which only the critic is trained."""
    normalized_correction: CorrectionFunction | None = None
    """What `correct_step` works out before the step; None where the loss corrects by itself, or nothing does."""
    entropy: Entropy = Entropy.NONE
    needs_proximal: bool = False
    """Ask the policy before it changes; where False, what it says at its only update is the same."""
    needs_reference: bool = False
    is_teacher_served: bool = False
    """What the teacher says of the tokens comes with the attempts."""

    @property
    def needs_teacher(self) -> bool:
        """A model of it, to be asked."""
        return self.plan is not None and bool(self.plan.distillation_coef) and not self.is_teacher_served

    @property
    def needs_values(self) -> bool:
        return self.value_loss is not None


def choose_algorithm(settings: RunSettings) -> Algorithm:
    """PluginError if a function that the settings name does not load."""
    trainer = settings.trainer
    updates, epochs = trainer.updates_per_step, trainer.epochs
    if settings.kind == "sft":
        return Algorithm(sft_loss, "token", updates_per_step=updates, epochs=epochs)
    if settings.kind == "dpo":
        dpo = trainer.dpo
        loss = partial(dpo_loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing, kind=dpo.type)
        return Algorithm(loss, "rollout", updates_per_step=updates, epochs=epochs, needs_reference=True)
    kl, has_critic = trainer.kl, trainer.advantage.estimator == "ppo"
    return Algorithm(
        loss=choose_loss(trainer),
        aggregation=trainer.loss.aggregation,
        temperature=settings.rollout.sampling.temperature,
        constant_length=trainer.loss.constant_length,
        updates_per_step=updates,
        epochs=epochs,
        plan=_plan(trainer),
        value_loss=partial(value_loss, value_clip=trainer.critic.value_clip or None) if has_critic else None,
        critic_steps=trainer.critic.warmup_steps,
        normalized_correction=choose_correction(trainer.correction) if trainer.correction.normalize else None,
        entropy=_entropy(trainer),
        needs_proximal=_needs_proximal(trainer),
        needs_reference=bool(kl.reward_coef or kl.loss_coef or kl.measure),
        is_teacher_served=bool(trainer.distillation.url),
    )


def _plan(trainer: TrainerSettings) -> AdvantagePlan:
    advantage = trainer.advantage
    return AdvantagePlan(
        estimator=_estimator(trainer),
        gamma=advantage.gamma,
        gae_lambda=advantage.gae_lambda,
        kl_coef=trainer.kl.reward_coef,
        kl_estimator=trainer.kl.estimator or "k1",
        distillation_coef=trainer.distillation.coef,
        whitening=advantage.whiten,
    )


def _estimator(trainer: TrainerSettings) -> ScalarEstimator | Literal["reinforce_plus_plus", "gae"]:
    match trainer.advantage.estimator:
        case "grpo":
            return partial(grpo, normalize_std=trainer.advantage.normalize_std)
        case "rloo":
            return rloo
        case "reinforce_plus_plus_baseline":
            return group_baseline
        case "reinforce_plus_plus":
            return "reinforce_plus_plus"
        case "ppo":
            return "gae"
        case path:
            return own_advantages(path)


def _entropy(trainer: TrainerSettings) -> Entropy:
    if trainer.loss.entropy_coef:
        return Entropy.LOSS
    return Entropy.METRIC if trainer.loss.entropy_metric else Entropy.NONE


def _needs_proximal(trainer: TrainerSettings) -> bool:
    """Penalties and weights that are known before the step need it, and ratios to it once the policy has moved."""
    early = trainer.kl.reward_coef or trainer.distillation.coef or trainer.correction.normalize
    moves = trainer.updates_per_step * trainer.epochs > 1 or is_own(trainer.loss)
    return bool(early) or (trainer.loss.old_policy == "proximal" and moves)
