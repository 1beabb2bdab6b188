"""The numbers of a finished demo, of runs with and without engines."""

import json
from pathlib import Path

import pytest

from shared.rest_examples import EVALUATION, RUN
from sluice.answers import Evaluation, Run, Step
from sluice.demo.summary import summarise, write_summary

COUNTERS = {"emitted": 250, "dropped": 6, "trained": 256, "trained_tokens": 5000}
METRICS = {
    "rl": {"reward_mean": 0.4, "staleness_max": 0.0, "logprob_diff_mean_abs": 1e-6, "ratio_deviation_max": 1e-5},
    "sft": {"loss": 0.4},
    "dpo": {"loss": 0.7, "preference_accuracy": 0.4, "preference_margin": 0.1},
}
ROLLOUTS = {"max_staleness_seen", "mean_abs_logprob_diff", "max_ratio_deviation_first_step"}


def evaluation(version: int, accuracy: float) -> Evaluation:
    changes = {"version": version, "dataset": "held-out", "groups": 400, "reward_mean": accuracy}
    return Evaluation.model_validate({**EVALUATION, **changes})


@pytest.mark.parametrize(
    ("kind", "curve"), [("rl", "reward_curve"), ("sft", "loss_curve"), ("dpo", "preference_accuracy_curve")]
)
def test_a_summary_has_what_its_kind_of_run_measures(kind: str, curve: str, tmp_path: Path) -> None:
    run = Run.model_validate({**RUN, "kind": kind, "steps": 2, "weight_version": 2, "counters": COUNTERS})
    steps = [Step(step=n, weight_version=n, metrics=METRICS[kind]) for n in (1, 2)]
    held_out = {0: evaluation(0, 0.1), 2: evaluation(2, 0.9)}
    found = summarise(run, steps, held_out, {"sft": 3.0, "rl": 4.0}, 7, "An algorithm")
    assert (found["accuracy_before_rl"], found["accuracy_after_rl"], found["held_out_rows"]) == (0.1, 0.9, 400)
    assert found["accuracy_curve"] == [(0, 0.1), (2, 0.9)]
    assert {name: found[name] for name in found if name.endswith("_curve")} == {
        curve: [0.4, 0.4],
        "accuracy_curve": found["accuracy_curve"],
    }
    assert (found["groups_generated"], found["groups_trained"], found["groups_dropped"]) == (256, 256, 6)
    assert found.keys() & ROLLOUTS == (ROLLOUTS if kind == "rl" else set())
    written = json.loads(write_summary(tmp_path, found).read_text())
    assert (written["kind"], written["seed"], written["algorithm"]) == (kind, 7, "An algorithm")
