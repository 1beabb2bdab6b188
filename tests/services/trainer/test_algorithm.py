"""What settings make of a step: the losses and advantages that they name, and what they need to know before it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.rloo import rloo
from services.trainer.advantages.token_advantages import RankTokens
from services.trainer.algorithm import Algorithm, choose_algorithm
from services.trainer.losses.token_loss import LossFunction, Predictions
from shared.run_settings import RunSettings
from shared.settings import from_assignments, merge, validate
from tests.services.trainer.losses.trained_columns import gradient_of, random_tokens
from tests.services.trainer.ragged import ragged

RUN: dict[str, Any] = {
    "name": "sums",
    "model": {"path": "/models/tiny"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 10},
}
OWN = "tests.services.trainer.own_algorithm"


def algorithm(*assignments: str, kind: str = "rl") -> Algorithm:
    tree = from_assignments([f"kind={kind}", *(f"trainer.{one}" for one in assignments)])
    return choose_algorithm(validate(RunSettings, merge(RUN, tree), "run.toml"))


def test_a_plain_run_is_grpo_with_clipping_at_a_fifth_and_asks_no_other_model() -> None:
    found = algorithm()
    assert not (found.needs_proximal or found.needs_reference or found.needs_teacher or found.needs_values)
    assert (found.aggregation, found.entropy, found.epochs, found.updates_per_step) == ("rollout", "metric", 1, 1)
    batch = ragged(1)
    assert found.plan is not None
    learned = found.plan.advantages(batch.samples, RankTokens(batch.sample, batch.mask), lambda sums: sums)
    assert torch.equal(learned.advantages, torch.where(batch.mask, grpo(batch.samples)[batch.sample], 0.0))
    assert clips_at(found.loss) == pytest.approx((0.8, 1.2), abs=1e-3)


def clips_at(loss: LossFunction) -> tuple[float, float]:
    """The smallest ratio that a bad token still learns from, and the largest that a good one does."""
    _, tokens = random_tokens(1)
    one = tokens.behaviour_logprobs[:1].clone()

    def learns(ratio: float, advantage: float) -> bool:
        rows = {name: getattr(tokens, name)[:1] for name in ("weights", "staleness", "sample")}
        columns = type(tokens)(behaviour_logprobs=one, advantages=torch.tensor([advantage]), **rows)
        return bool(gradient_of(loss, one + math.log(ratio), columns)[1].any())

    grid = np.arange(0.5, 6, 1e-3)
    low = next((ratio for ratio in grid if learns(float(ratio), -1.0)), 0.0)
    high = next((ratio for ratio in grid[grid > 1] if not learns(float(ratio), 1.0)), math.inf)
    return float(low), float(high)


def test_the_bounds_of_gspo_are_those_of_the_paper_and_cispo_lets_every_token_learn() -> None:
    low, high = clips_at(algorithm("loss.type=gspo").loss)
    assert (low, high) == pytest.approx((1.0, 1.001), abs=1e-3)
    assert clips_at(algorithm("loss.type=cispo").loss) == (0.5, math.inf)
    wide = clips_at(algorithm("loss.type=ppo_clip", "loss.clip_low=0.3", "loss.clip_high=0.5").loss)
    assert wide == pytest.approx((0.7, 1.5), abs=2e-3)


def test_cispo_bounds_its_weight_at_five() -> None:
    logprobs, tokens = random_tokens(1, drift=3.0)
    _, gradient = gradient_of(algorithm("loss.type=cispo").loss, logprobs, tokens)
    ratio = (logprobs - tokens.behaviour_logprobs).exp().clamp(max=5.0)
    np.testing.assert_allclose(gradient, (-ratio * tokens.advantages * tokens.weights).numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    ("assignments", "needs"),
    [
        (["loss.old_policy=proximal"], ""),
        (["loss.old_policy=proximal", "correction.type=tis"], ""),
        (["loss.old_policy=proximal", "updates_per_step=2"], "proximal"),
        (["loss.old_policy=proximal", "epochs=2"], "proximal"),
        (["updates_per_step=2"], ""),
        (["loss.old_policy=proximal", f"loss.type={OWN}:reinforce"], "proximal"),
        (["loss.old_policy=proximal", "correction.type=mis", "correction.normalize=true"], "proximal"),
        (["kl.loss_coef=0.1"], "reference"),
        (["kl.measure=true"], "reference"),
        (["kl.reward_coef=0.1", "advantage.estimator=ppo"], "proximal reference values"),
        (["advantage.estimator=ppo"], "values"),
        (["distillation.coef=1.0", "distillation.teacher=/models/large"], "proximal teacher"),
        (["distillation.coef=1.0", "distillation.url=http://teacher.example"], "proximal"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else given or "nothing",
)
def test_other_models_are_asked_only_where_something_depends_on_them(assignments: list[str], needs: str) -> None:
    found = algorithm(*assignments)
    names = ("proximal", "reference", "teacher", "values")
    assert " ".join(name for name in names if getattr(found, f"needs_{name}")) == needs


def test_entropy_is_worked_out_for_the_bonus_for_the_metric_or_not_at_all() -> None:
    assert algorithm("loss.entropy_coef=0.1").entropy == "loss"
    assert algorithm("loss.entropy_metric=false").entropy == "none"
    assert algorithm(kind="sft").entropy == "none"


def test_every_correction_of_the_settings_is_in_the_loss_and_rejects_more() -> None:
    logprobs, tokens = random_tokens(2)
    given, rejected = ["loss.old_policy=proximal", "epochs=2", "correction.type=mis"], [0.0]
    for more in ("rejection=token", "veto_threshold=0.6", "max_token_staleness=2"):
        given.append(f"correction.{more}")
        found, gradient = gradient_of(algorithm(*given).loss, logprobs, tokens)
        rejected.append(found.sums["rejected_fraction"].item())
    assert rejected == sorted(set(rejected))
    assert not gradient[tokens.staleness.numpy() > 2].any()


@pytest.mark.parametrize("more", [[], ["correction.type=mis", "correction.normalize=true"]])
def test_opsm_masks_by_the_policy_that_learns_not_by_the_one_that_the_step_starts_from(more: list[str]) -> None:
    _, tokens = random_tokens(2)
    loss = algorithm("loss.old_policy=proximal", "epochs=2", "correction.opsm_delta=0.05", *more).loss
    steady, fallen = tokens.behaviour_logprobs, tokens.behaviour_logprobs - 0.1
    for proximal in (steady, fallen):
        columns = replace(tokens, proximal_logprobs=proximal, correction=None)
        assert gradient_of(loss, steady, columns)[0].sums["opsm_fraction"].item() == 0
        found, gradient = gradient_of(loss, fallen, columns)
        bad = tokens.advantages.numpy() < 0
        assert not gradient[bad].any()
        assert gradient[~bad].any()
        assert found.sums["opsm_fraction"].item() == bad.sum()


def test_a_correction_with_mean_one_is_left_to_what_knows_the_whole_step() -> None:
    found = algorithm("loss.old_policy=proximal", "correction.type=mis", "correction.normalize=true")
    logprobs, tokens = random_tokens(2)
    assert found.normalized_correction is not None
    assert "correction_mean" not in found.loss(Predictions(logprobs), tokens).sums


def test_the_divergence_is_k1_in_the_reward_and_k3_in_the_loss_unless_told() -> None:
    paid = algorithm("kl.reward_coef=0.1", "advantage.estimator=ppo").plan
    assert paid is not None
    assert paid.kl_estimator == "k1"
    logprobs, tokens = random_tokens(3)
    assert tokens.reference_logprobs is not None
    gap = logprobs - tokens.reference_logprobs
    told = {"kl.loss_coef=0.1": (-gap).exp() - 1 + gap, "kl.estimator=k2": gap.square() / 2}
    given: list[str] = []
    for assignment, expected in told.items():
        given.append(assignment)
        sums = algorithm(*given).loss(Predictions(logprobs, -logprobs), tokens).sums
        assert sums["kl_reference"].item() == pytest.approx(expected.sum().item())


def test_estimators_are_found_by_name_and_by_path() -> None:
    plans = [algorithm(f"advantage.estimator={name}").plan for name in ("rloo", f"{OWN}:plain_rewards", "ppo")]
    assert all(plan is not None for plan in plans)
    samples = ragged(2).samples
    first, second, third = (plan.estimator for plan in plans if plan is not None)
    assert first is rloo
    assert callable(second)
    assert torch.equal(second(samples), samples.reward)
    assert third == "gae"


def test_the_critic_clips_unless_it_is_told_not_to() -> None:
    _, tokens = random_tokens(4)
    assert tokens.old_values is not None
    said = Predictions(torch.zeros(0), None, tokens.old_values + 1.0)
    sums = []
    for given in ([], ["critic.value_clip=0"]):
        loss = algorithm("advantage.estimator=ppo", *given).value_loss
        assert loss is not None
        sums.append(loss(said, tokens).sums["value_clip_fraction"].item())
    assert sums[0] > sums[1] == 0


def test_preference_and_supervised_runs_have_losses_of_their_own() -> None:
    preference, supervised = algorithm("dpo.beta=0.3", kind="dpo"), algorithm(kind="sft")
    assert (preference.needs_reference, preference.aggregation, preference.plan) == (True, "rollout", None)
    assert (supervised.needs_reference, supervised.aggregation, supervised.plan) == (False, "token", None)
    logprobs, tokens = random_tokens(5)
    assert supervised.loss(Predictions(logprobs), tokens).loss.item() == pytest.approx(
        -(logprobs * tokens.weights).sum().item()
    )
