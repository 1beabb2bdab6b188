"""The trainer's settings and those of its run -> the sentences about what does not go together, or has no effect."""

from collections.abc import Callable, Iterator

from shared.check_address import names_a_host
from shared.plugins import names_function
from shared.settings import Settings
from shared.trainer_settings import (
    AdvantageSettings,
    CorrectionSettings,
    CriticSettings,
    DistillationSettings,
    DpoSettings,
    KlSettings,
    LossSettings,
    TrainerSettings,
)

ESTIMATORS = ("grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo")
OF_GROUPS = ("grpo", "rloo", "reinforce_plus_plus_baseline")
"""Estimators that compare the attempts of a group."""
BY_TOKEN = ("reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo")
"""Estimators whose rewards are paid by token, so that a divergence can be charged there."""
LOSSES = ("ppo_clip", "gspo", "cispo")
WIDEST_GSPO_CLIP = 0.1
OF_SERVED_TEACHER = ("batch_tokens", "deadline_s", "max_tries")
MIS_ONLY = ("level", "mode", "rejection", "rejection_low", "rejection_high", "veto_threshold", "normalize")


def trainer_problems(trainer: TrainerSettings, kind: str, group_size: int, groups_per_step: int) -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    if trainer.warmup_steps > trainer.steps > 0:
        yield f"trainer.warmup_steps is larger than trainer.steps; write at most {trainer.steps}"
    if trainer.min_learning_rate_ratio and trainer.schedule == "constant":
        yield (
            'trainer.min_learning_rate_ratio is where a decay ends, and trainer.schedule is "constant"; write'
            ' schedule = "linear" or "cosine", or leave it out'
        )
    if groups_per_step % trainer.updates_per_step:
        yield (
            f"trainer.updates_per_step is {trainer.updates_per_step}, which does not divide rollout.groups_per_step ="
            f" {groups_per_step}; write a divisor of it"
        )
    if trainer.offload_frozen and not _has_frozen(trainer, kind):
        yield (
            "trainer.offload_frozen is about a reference or a teacher in the trainer, which this run has not; leave it"
            " out, or write a coefficient in trainer.kl, or a trainer.distillation.teacher"
        )
    if kind != "rl":
        yield from _without_rewards(trainer, kind)
    else:
        if trainer.dpo != DpoSettings():
            yield f'trainer.dpo is of runs of kind "dpo", and {changed(trainer.dpo)} is set; leave it out'
        for check in _RL_CHECKS:
            yield from check(trainer)
        yield from _group_size(trainer, group_size)


def changed(settings: Settings) -> str:
    """The names of a section's settings that are not at their defaults."""
    usual = type(settings)()
    return ", ".join(name for name in type(settings).model_fields if getattr(settings, name) != getattr(usual, name))


def _has_frozen(trainer: TrainerSettings, kind: str) -> bool:
    return kind == "dpo" or (kind == "rl" and bool(_uses_reference(trainer.kl) or trainer.distillation.teacher))


def _uses_reference(kl: KlSettings) -> bool:
    return bool(kl.reward_coef or kl.loss_coef or kl.measure)


def _without_rewards(trainer: TrainerSettings, kind: str) -> Iterator[str]:
    """A run without rewards has a loss of its own, and no section but the preference's speaks to it."""
    sections: dict[str, tuple[Settings, Settings]] = {
        "advantage": (trainer.advantage, AdvantageSettings()),
        "loss": (trainer.loss, LossSettings()),
        "correction": (trainer.correction, CorrectionSettings()),
        "critic": (trainer.critic, CriticSettings()),
        "distillation": (trainer.distillation, DistillationSettings()),
    }
    if kind == "dpo":
        kl = trainer.kl.model_copy(update={"reference": ""})
        sections["kl"] = (kl, KlSettings())
        if trainer.dpo.type == "ipo" and trainer.dpo.label_smoothing:
            yield 'trainer.dpo.label_smoothing is of type "dpo" and has no effect on "ipo"; write 0'
    else:
        sections |= {"kl": (trainer.kl, KlSettings()), "dpo": (trainer.dpo, DpoSettings())}
    if trainer.logprob_diff_alarm:
        yield f"trainer.logprob_diff_alarm compares with engines, which a run of kind {kind!r} has not; leave it out"
    for name, (given, default) in sections.items():
        if given != default:
            yield f"trainer.{name}.{changed(given)} has no effect in a run of kind {kind!r}; leave it out"


def _advantage(trainer: TrainerSettings) -> Iterator[str]:
    advantage, estimator = trainer.advantage, trainer.advantage.estimator
    yield from _known("trainer.advantage.estimator", estimator, ESTIMATORS)
    if estimator.startswith("reinforce_plus_plus") and advantage.whiten == "none":
        yield f'trainer.advantage.whiten is "none", and {estimator} is whitened; write whiten = "step" or "dataset"'
    if not advantage.normalize_std and estimator != "grpo":
        yield f"trainer.advantage.normalize_std is grpo's and has no effect on {estimator}; leave it out"
    if advantage.gamma != 1 and estimator not in ("reinforce_plus_plus", "ppo"):
        yield f"trainer.advantage.gamma has no effect on {estimator}, whose tokens have one advantage; leave it out"
    if advantage.gae_lambda != 1 and estimator != "ppo":
        yield f"trainer.advantage.gae_lambda is ppo's and has no effect on {estimator}; leave it out"


def _group_size(trainer: TrainerSettings, group_size: int) -> Iterator[str]:
    estimator = trainer.advantage.estimator
    if group_size == 1 and estimator in OF_GROUPS and not trainer.distillation.coef:
        yield (
            f"rollout.group_size is 1, so every advantage of {estimator} is 0; write group_size = 2 or more, or"
            ' trainer.advantage.estimator = "reinforce_plus_plus" or "ppo"'
        )


def _loss(trainer: TrainerSettings) -> Iterator[str]:
    loss = trainer.loss
    yield from _known("trainer.loss.type", loss.type, LOSSES)
    if loss.type == "gspo" and max(loss.clip_low or 0, loss.clip_high or 0) > WIDEST_GSPO_CLIP:
        yield (
            "trainer.loss.clip_low and clip_high bound the mean ratio of a whole sample with gspo, which stays near 1;"
            f" write values up to {WIDEST_GSPO_CLIP}, or leave them out for 3e-4 and 4e-4"
        )
    if loss.type == "ppo_clip" and (loss.clip_low or 0) >= 1:
        yield f"trainer.loss.clip_low is {loss.clip_low}, and ratios are above 0; write less than 1"
    if loss.type == "cispo" and (loss.clip_low or 0) >= 1:
        yield (
            f"trainer.loss.clip_low is {loss.clip_low}, which bounds no weight of cispo: they are above 0; write less"
            " than 1, or leave it out"
        )
    if loss.dual_clip is not None and loss.type == "cispo":
        yield "trainer.loss.dual_clip has no effect on cispo, whose clip_high bounds every weight; leave it out"
    if loss.aggregation == "constant" and not loss.constant_length:
        yield 'trainer.loss.aggregation "constant" divides by constant_length; write it, such as max_new_tokens'
    if loss.constant_length and loss.aggregation != "constant":
        yield 'trainer.loss.constant_length has no effect here; write aggregation = "constant" or leave it out'
    if _ratio_is_one(trainer) and (loss.clip_low, loss.clip_high, loss.dual_clip) != (None, None, None):
        yield (
            'trainer.loss.old_policy "proximal" with one update a step makes every ratio 1, so that nothing is'
            ' clipped; leave clip_low, clip_high and dual_clip out, or write old_policy = "behaviour"'
        )
    if ":" in loss.type:
        yield from _loss_plugin(trainer)


def _ratio_is_one(trainer: TrainerSettings) -> bool:
    return trainer.loss.old_policy == "proximal" and trainer.updates_per_step * trainer.epochs == 1


def _loss_plugin(trainer: TrainerSettings) -> Iterator[str]:
    loss = trainer.loss
    ignored = [name for name in ("clip_low", "clip_high", "dual_clip") if getattr(loss, name) is not None]
    ignored += ["entropy_coef"] if loss.entropy_coef else []
    if ignored:
        yield f"trainer.loss.{', '.join(ignored)} has no effect on {loss.type}; leave it out and write it there"
    if trainer.kl.loss_coef or trainer.kl.unbiased:
        yield f"trainer.kl.loss_coef has no effect on {loss.type}; write kl.measure = true, and use the column there"
    if trainer.correction != CorrectionSettings():
        yield f"trainer.correction has no effect on {loss.type}; leave it out and correct there"


def _kl(trainer: TrainerSettings) -> Iterator[str]:
    kl, estimator = trainer.kl, trainer.advantage.estimator
    if kl.reward_coef and kl.loss_coef:
        yield "trainer.kl.reward_coef and loss_coef both charge for the divergence; write 0 for one of them"
    if kl.reward_coef and estimator not in BY_TOKEN:
        yield (
            f"trainer.kl.reward_coef has no effect on {estimator}, whose rewards are of whole attempts; write"
            " kl.loss_coef instead"
        )
    if kl.unbiased and not kl.loss_coef:
        yield "trainer.kl.unbiased is about the loss, and loss_coef is 0; write a loss_coef or leave it out"
    if kl.loss_coef and kl.estimator == "k1" and not kl.unbiased:
        yield (
            "trainer.kl.estimator k1 has a gradient of 0 on average as a loss; write k2, k3 or low_var, or"
            " unbiased = true"
        )
    if not _uses_reference(kl) and kl != KlSettings():
        yield f"trainer.kl.{changed(kl)} has no effect; write loss_coef, reward_coef or measure = true, or leave it out"


def _correction(trainer: TrainerSettings) -> Iterator[str]:
    correction = trainer.correction
    given = [name for name in MIS_ONLY if name in changed(correction).split(", ")]
    if given and correction.type != "mis":
        yield f'trainer.correction.{", ".join(given)} is of type "mis"; write type = "mis" or leave it out'
    if correction.type == "none":
        if correction.low is not None or correction.high is not None:
            yield 'trainer.correction.low and high bound no weight; write type = "tis", "icepop" or "mis"'
    elif trainer.loss.old_policy == "behaviour":
        yield (
            f'trainer.correction.type "{correction.type}" weighs by what trainer.loss.old_policy "behaviour" has in its'
            ' ratio already; write old_policy = "proximal", or type = "none"'
        )
    if correction.rejection == "none" and (correction.rejection_low, correction.rejection_high) != (None, None):
        yield 'trainer.correction.rejection_low and rejection_high reject nothing; write rejection = "token"'
    yield from _bounds(correction)


def _bounds(correction: CorrectionSettings) -> Iterator[str]:
    low, high = correction.bounds
    if low >= high:
        yield f"trainer.correction.low is {low:g} and high {high:g}; write a lower bound below the upper one"
    low, high = correction.rejection_bounds
    if correction.rejection != "none" and low >= high:
        yield f"trainer.correction.rejection_low is {low:g} and rejection_high {high:g}; write one below the other"


def _models(trainer: TrainerSettings) -> Iterator[str]:
    """The critic and the teacher."""
    critic, distillation, estimator = trainer.critic, trainer.distillation, trainer.advantage.estimator
    if critic != CriticSettings() and estimator != "ppo":
        yield f'trainer.critic.{changed(critic)} has no effect on {estimator}; write estimator = "ppo" or leave it out'
    if critic.warmup_steps >= trainer.steps > 0:
        yield f"trainer.critic.warmup_steps leaves no step for the policy; write less than {trainer.steps}"
    yield from _teacher(distillation)


def _teacher(given: DistillationSettings) -> Iterator[str]:
    if given.teacher and given.url:
        yield "trainer.distillation.teacher and url name two teachers; leave one of them out"
    if given.url and not names_a_host(given.url, ("http", "https")):
        yield f"trainer.distillation.url is {given.url!r}; write the http:// or https:// address of an SGLang server"
    if given.coef and not (given.teacher or given.url):
        yield (
            "trainer.distillation.coef needs a teacher; write trainer.distillation.teacher, the folder of a model, or"
            " url, the address of an SGLang server"
        )
    if (given.teacher or given.url) and not given.coef:
        name = "teacher" if given.teacher else "url"
        yield f"trainer.distillation.{name} has no effect with coef = 0; write coef = 1.0, or leave it out"
    asking = [name for name in changed(given).split(", ") if name in OF_SERVED_TEACHER]
    if asking and not given.url:
        yield f"trainer.distillation.{', '.join(asking)} has no effect without a url; leave it out"


def _known(name: str, given: str, names: tuple[str, ...]) -> Iterator[str]:
    if given not in names and not names_function(given):
        yield f"{name} is {given!r}; write {', '.join(names)}, or module:function for your own"


_RL_CHECKS: tuple[Callable[[TrainerSettings], Iterator[str]], ...] = (_advantage, _loss, _kl, _correction, _models)
