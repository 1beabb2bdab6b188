"""A run's settings -> its models on this rank and what trains recorded steps with them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from services.trainer.algorithm import Algorithm, choose_algorithm
from services.trainer.backends.adapt_layers import adapt_layers, shape_of
from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.estimates import Estimators
from services.trainer.flops import ALL_LEARN, FROZEN, TrainingFlops, training_flops
from services.trainer.frozen_model import FrozenModel, UntrainedPolicy
from services.trainer.learner import Learner, RankLearner, Reference
from services.trainer.load_model import load_causal_lm, load_policy
from services.trainer.ranks import OneRank, Ranks
from services.trainer.schedule import learning_rate
from services.trainer.scoring_model import ScoringModel
from services.trainer.step_costs import StepCosts
from services.trainer.train_step import Rate, StepTrainer, Trained
from services.trainer.value_model import ValueModel
from shared.run_settings import RunSettings


def open_learner(settings: RunSettings, device: torch.device, ranks: Ranks | None = None) -> Learner:
    """The run's initial models; RunRejected if they cannot be trained.

    A run that only evaluates has the policy alone: no step will ask a critic, a reference or a teacher.
    """
    algorithm = choose_algorithm(settings)
    if settings.evaluates_only:
        algorithm = replace(algorithm, plan=None, value_loss=None, needs_reference=False)
    return _Opening(settings, algorithm, device, ranks or OneRank()).learner()


class _Opening:
    """The models of one run, one after the other."""

    def __init__(self, settings: RunSettings, algorithm: Algorithm, device: torch.device, ranks: Ranks) -> None:
        self._settings, self._algorithm, self._device, self._ranks = settings, algorithm, device, ranks
        self._dtype: torch.dtype = getattr(torch, settings.model.dtype)
        self._initial = Path(settings.model.path).expanduser()

    def learner(self) -> Learner:
        (policy, flops), critic, reference = self._policy(), self._critic(), self._reference()
        algorithm, trainer = self._algorithm, self._settings.trainer
        teacher = self._frozen(Path(trainer.distillation.teacher)) if algorithm.needs_teacher else None
        estimators = Estimators(
            policy=policy if algorithm.needs_proximal else None,
            reference=reference.model if reference else self._untrained(policy),
            teacher=teacher,
            critic=critic.backend if critic else None,
        )
        steps = StepTrainer(
            policy=Trained(policy, self._rate(trainer.learning_rate)),
            algorithm=algorithm,
            max_tokens=trainer.max_tokens_per_gpu,
            kind=self._settings.kind,
            ranks=self._ranks,
            estimators=estimators,
            costs=StepCosts(self._device, self._dtype, self._ranks, flops, algorithm.epochs),
            critic=critic,
        )
        frozen = [model for model in (reference.model if reference else None, teacher) if model is not None]
        return RankLearner(policy, steps, critic.backend if critic else None, reference, frozen)

    def _policy(self) -> tuple[TorchBackend, TrainingFlops]:
        trust, temperature = self._settings.model.trust_remote_code, self._algorithm.temperature
        model = load_policy(self._initial, trust, temperature, self._device, self._algorithm.entropy)
        flops = training_flops(model.core, FROZEN if self._settings.lora.rank else ALL_LEARN)
        return self._trained(model, self._initial, self._settings.lora.publish), flops

    def _critic(self) -> Trained | None:
        if not self._algorithm.needs_values:
            return None
        critic = self._settings.trainer.critic
        folder = Path(critic.path).expanduser() if critic.path else self._initial
        body = load_causal_lm(folder, self._settings.model.trust_remote_code, self._device)
        backend = self._trained(ValueModel(body, self._settings.seed), folder)
        return Trained(backend, self._rate(critic.learning_rate))

    def _trained(self, model: ScoringModel, folder: Path, publish: str = "merged") -> TorchBackend:
        trainer, lora = self._settings.trainer, self._settings.lora
        if lora.rank:
            adapt_layers(model.core, shape_of(lora), self._settings.seed)
        if trainer.recompute:
            recompute_layers(model.core)
        if trainer.compile:
            compile_model(model, model.core, trainer.recompute)
        return TorchBackend(model, self._dtype, adamw_of(self._settings), folder, self._ranks, publish)

    def _reference(self) -> Reference | None:
        kl = self._settings.trainer.kl
        if not self._algorithm.needs_reference or (self._settings.lora.rank and not kl.reference):
            return None
        folder = Path(kl.reference).expanduser() if kl.reference else self._initial
        return Reference(self._frozen(folder), kl.refresh_every)

    def _untrained(self, policy: TorchBackend) -> UntrainedPolicy | None:
        return UntrainedPolicy(policy) if self._algorithm.needs_reference else None

    def _frozen(self, folder: Path) -> FrozenModel:
        trust, temperature = self._settings.model.trust_remote_code, self._algorithm.temperature
        model = load_policy(folder.expanduser(), trust, temperature, self._device)
        return FrozenModel(model, self._dtype, self._ranks, self._settings.trainer.offload_frozen)

    def _rate(self, peak: float) -> Rate:
        trainer = self._settings.trainer
        return partial(
            learning_rate,
            steps=trainer.steps,
            peak=peak,
            warmup=trainer.warmup_steps,
            shape=trainer.schedule,
            min_ratio=trainer.min_learning_rate_ratio,
        )


def adamw_of(settings: RunSettings) -> AdamW:
    """The optimizer of policy and critic."""
    trainer = settings.trainer
    betas = (trainer.adam_beta1, trainer.adam_beta2)
    return AdamW(betas, trainer.adam_epsilon, trainer.weight_decay, trainer.max_grad_norm, trainer.offload_optimizer)
