"""Every refusal of trainer settings, and the settings that look alike and are fine."""

import pytest

from shared.errors import SettingsError
from shared.run_settings import RunSettings
from shared.settings import from_assignments, merge, validate

RUN = {
    "name": "sums",
    "model": {"path": "/models/tiny"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 10},
}


def settings(*assignments: str) -> RunSettings:
    return validate(RunSettings, merge(RUN, from_assignments(assignments)), "run.toml")


PROXIMAL = "loss.old_policy=proximal"
WHITENED = "advantage.whiten=step"
SERVED = ["distillation.url=http://teacher.example:30000", "distillation.coef=1.0"]
REFUSED = [
    (["updates_per_step=5"], "does not divide rollout.groups_per_step = 32; write a divisor of it"),
    (["warmup_steps=11"], "write at most 10"),
    (["min_learning_rate_ratio=0.1"], 'write schedule = "linear" or "cosine", or leave it out'),
    (["kl.reward_coef=0.1", "kl.loss_coef=0.1"], "write 0 for one of them"),
    (["kl.reward_coef=0.1"], "trainer.kl.reward_coef has no effect on grpo"),
    (["kl.reward_coef=0.1", "advantage.estimator=rloo"], "write kl.loss_coef instead"),
    (["kl.loss_coef=0.1", "kl.estimator=k1"], "write k2, k3 or low_var, or unbiased = true"),
    (["kl.unbiased=true"], "write a loss_coef or leave it out"),
    (["kl.reference=/models/other"], "trainer.kl.reference has no effect; write loss_coef"),
    (["kl.refresh_every=3"], "trainer.kl.refresh_every has no effect; write loss_coef"),
    (["advantage.estimator=gropo"], "write grpo, rloo, reinforce_plus_plus"),
    (["advantage.estimator=mine:"], "or module:function for your own"),
    (["advantage.estimator=reinforce_plus_plus"], 'write whiten = "step" or "dataset"'),
    (["advantage.estimator=reinforce_plus_plus_baseline"], 'write whiten = "step" or "dataset"'),
    (["advantage.estimator=rloo", "advantage.normalize_std=false"], "normalize_std is grpo's"),
    (["advantage.gamma=0.9"], "trainer.advantage.gamma has no effect on grpo"),
    (["advantage.gae_lambda=0.9"], "trainer.advantage.gae_lambda is ppo's"),
    (["loss.type=ppo"], "write ppo_clip, gspo, cispo, or module:function"),
    (["loss.type=:loss"], "write ppo_clip, gspo, cispo, or module:function"),
    (["loss.type=gspo", "loss.clip_high=0.2"], "write values up to 0.1, or leave them out for 3e-4 and 4e-4"),
    (["loss.clip_low=1.0"], "write less than 1"),
    (["loss.type=cispo", "loss.dual_clip=3"], "dual_clip has no effect on cispo"),
    (["loss.type=cispo", "loss.clip_low=1.0"], "write less than 1, or leave it out"),
    (["loss.dual_clip=1.0"], "greater than 1"),
    (["loss.aggregation=constant"], "divides by constant_length; write it"),
    (["loss.constant_length=100"], 'write aggregation = "constant" or leave it out'),
    ([PROXIMAL, "loss.clip_high=0.3"], 'or write old_policy = "behaviour"'),
    (["loss.type=mine:loss", "loss.clip_high=0.3"], "trainer.loss.clip_high has no effect on mine:loss"),
    (["loss.type=mine:loss", "loss.entropy_coef=0.3"], "trainer.loss.entropy_coef has no effect on mine:loss"),
    (["loss.type=mine:loss", "kl.loss_coef=0.3"], "write kl.measure = true"),
    (["loss.type=mine:loss", "correction.opsm_delta=0.3"], "trainer.correction has no effect on mine:loss"),
    (["correction.type=tis"], 'write old_policy = "proximal", or type = "none"'),
    (["correction.high=3"], 'write type = "tis", "icepop" or "mis"'),
    ([PROXIMAL, "correction.type=tis", "correction.level=sequence"], 'write type = "mis" or leave it out'),
    (["correction.veto_threshold=0.1"], 'trainer.correction.veto_threshold is of type "mis"'),
    ([PROXIMAL, "correction.type=mis", "correction.rejection_low=0.5"], 'write rejection = "token"'),
    ([PROXIMAL, "correction.type=mis", "correction.low=3"], "write a lower bound below the upper one"),
    (
        [PROXIMAL, "correction.type=mis", "correction.rejection=token", "correction.rejection_low=3"],
        "rejection_low is 3 and rejection_high 2",
    ),
    (["critic.learning_rate=1e-4"], 'trainer.critic.learning_rate has no effect on grpo; write estimator = "ppo"'),
    (["advantage.estimator=ppo", "critic.warmup_steps=10"], "write less than 10"),
    (["distillation.coef=1.0"], "write trainer.distillation.teacher"),
    (["distillation.teacher=/models/large"], "write coef = 1.0"),
    (["distillation.url=http://teacher.example"], "trainer.distillation.url has no effect with coef = 0"),
    ([*SERVED, "distillation.teacher=/models/large"], "name two teachers; leave one of them out"),
    (["distillation.url=teacher:30000", "distillation.coef=1.0"], "write the http:// or https:// address"),
    (
        ["distillation.teacher=/models/large", "distillation.coef=1.0", "distillation.batch_tokens=4096"],
        "trainer.distillation.batch_tokens has no effect without a url",
    ),
    ([*SERVED, "offload_frozen=true"], "in the trainer, which this run has not"),
    (["offload_frozen=true"], "write a coefficient in trainer.kl, or a trainer.distillation.teacher"),
    (["dpo.beta=0.3"], 'trainer.dpo is of runs of kind "dpo", and beta is set'),
]
FINE = [
    ["updates_per_step=8", "epochs=2"],
    ["min_learning_rate_ratio=0.1", "schedule=linear"],
    ["kl.reward_coef=0.1", "advantage.estimator=ppo", "kl.refresh_every=5"],
    ["kl.loss_coef=0.1", "kl.estimator=k1", "kl.unbiased=true"],
    ["kl.measure=true", "kl.reference=/models/other"],
    ["advantage.estimator=reinforce_plus_plus", WHITENED, "advantage.gamma=0.9", "kl.reward_coef=0.01"],
    ["advantage.estimator=mine:advantages"],
    ["loss.type=gspo", "loss.clip_high=5e-4"],
    ["loss.type=cispo", "loss.clip_low=0.9", "loss.clip_high=7.0"],
    ["loss.aggregation=constant", "loss.constant_length=100"],
    [PROXIMAL, "loss.clip_high=0.3", "updates_per_step=2"],
    [PROXIMAL, "loss.clip_high=0.3", "epochs=2"],
    [PROXIMAL, "correction.type=mis", "correction.rejection=geometric", "correction.rejection_high=1.01"],
    ["correction.opsm_delta=1e-4", "correction.max_token_staleness=2"],
    ["loss.type=mine:loss", "kl.measure=true"],
    ["distillation.teacher=/models/large", "distillation.coef=1.0"],
    ["distillation.teacher=/models/large", "distillation.coef=1.0", "offload_frozen=true"],
    ["kl.measure=true", "offload_frozen=true"],
    [*SERVED, "distillation.batch_tokens=4096", "distillation.deadline_s=3", "distillation.max_tries=1"],
]


@pytest.mark.parametrize(("assignments", "sentence"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_settings_that_do_not_go_together_are_refused(assignments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*(f"trainer.{one}" for one in assignments))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("assignments", FINE, ids=" ".join)
def test_settings_that_look_alike_are_fine(assignments: list[str]) -> None:
    found = settings(*(f"trainer.{one}" for one in assignments))
    assert RunSettings.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus_baseline"])
def test_a_group_of_one_has_nothing_to_be_compared_with(estimator: str) -> None:
    given = ["rollout.group_size=1", f"trainer.advantage.estimator={estimator}", f"trainer.{WHITENED}"]
    with pytest.raises(SettingsError, match=r"write group_size = 2 or more, or trainer.advantage.estimator"):
        settings(*given)
    settings(*given, "trainer.distillation.coef=1.0", "trainer.distillation.teacher=/models/large")


@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "ppo"])
def test_estimators_without_a_group_take_one_attempt(estimator: str) -> None:
    settings("rollout.group_size=1", f"trainer.advantage.estimator={estimator}", f"trainer.{WHITENED}")


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["kind=sft", "trainer.advantage.gamma=0.9"], "trainer.advantage.gamma has no effect in a run of kind 'sft'"),
        (["kind=sft", "trainer.loss.entropy_coef=0.9"], "trainer.loss.entropy_coef has no effect"),
        (["kind=sft", "trainer.kl.loss_coef=0.9"], "trainer.kl.loss_coef has no effect"),
        (["kind=sft", "trainer.logprob_diff_alarm=0.1"], "which a run of kind 'sft' has not"),
        (["kind=dpo", "trainer.logprob_diff_alarm=0.1"], "which a run of kind 'dpo' has not"),
        (["kind=sft", "trainer.offload_frozen=true"], "trainer.offload_frozen is about a reference or a teacher"),
        (["kind=sft", f"trainer.{SERVED[0]}"], "trainer.distillation.url has no effect in a run of kind 'sft'"),
        (["kind=dpo", f"trainer.{SERVED[0]}"], "trainer.distillation.url has no effect in a run of kind 'dpo'"),
        (["kind=sft", "trainer.dpo.beta=0.9"], "trainer.dpo.beta has no effect"),
        (["kind=dpo", "trainer.kl.loss_coef=0.9"], "trainer.kl.loss_coef has no effect in a run of kind 'dpo'"),
        (["kind=dpo", "trainer.dpo.type=ipo", "trainer.dpo.label_smoothing=0.1"], "write 0"),
        (["kind=dpo", "trainer.kl.refresh_every=5"], "trainer.kl.refresh_every has no effect in a run of kind 'dpo'"),
        (["kind=dpo", "trainer.dpo.beta=0"], "trainer.dpo.beta"),
        (["kind=dpo", "trainer.dpo.label_smoothing=0.5"], "trainer.dpo.label_smoothing"),
        (["kind=dpo", "eval.datasets=['held-out']"], "which a run of kind dpo has not"),
    ],
)
def test_runs_without_rewards_refuse_what_is_about_rewards(assignments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*assignments)
    assert sentence in str(caught.value)


def test_a_preference_run_has_pairs_and_may_name_its_reference_and_offload_it() -> None:
    assert settings("kind=dpo", "trainer.kl.reference=/models/other").attempts_per_group == 2
    settings("kind=dpo", "trainer.offload_frozen=true")
