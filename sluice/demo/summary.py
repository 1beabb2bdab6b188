"""A finished demo -> its numbers: accuracy before and after, the curve of the run, what became of every group."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.answers import Evaluation, Run, Step


@dataclass(frozen=True, slots=True)
class Curve:
    """What a kind of run shows by step."""

    key: str
    """Of the summary."""
    metric: str
    title: str
    legend: str
    """Where there is room for more."""


CURVES = {
    "rl": Curve("reward_curve", "reward_mean", "mean reward", "mean reward (sampled)"),
    "sft": Curve("loss_curve", "loss", "loss", "loss (nats a token)"),
    "dpo": Curve(
        "preference_accuracy_curve", "preference_accuracy", "accuracy of pairs", "accuracy of the pairs of a step"
    ),
}


def summarise(
    run: Run,
    steps: list[Step],
    held_out: Mapping[int, Evaluation],
    seconds: dict[str, float],
    seed: int,
    algorithm: str,
) -> dict[str, Any]:
    """The numbers of the run after the first SFT; `rl` in a name means that run, whatever its kind is.

    `accuracy_before_rl` and `accuracy_after_rl` are the shares of held-out rows that version 0 and the last version
    answer correctly, sampled greedily, as `held_out` has them by version. What rollouts alone have is left out where
    there are none; `mean_abs_logprob_diff` compares trainer and engine on the first step, of whose updates all but the
    first come after the policy has moved.
    """
    curve, counters = CURVES[run.kind], run.counters
    of_rollouts = _of_rollouts(steps) if run.kind == "rl" else {}
    return {
        "algorithm": algorithm,
        "kind": run.kind,
        "seed": seed,
        "accuracy_before_rl": held_out[0].reward_mean,
        "accuracy_after_rl": held_out[run.steps].reward_mean,
        "held_out_rows": held_out[0].groups,
        "accuracy_curve": sorted((version, found.reward_mean) for version, found in held_out.items()),
        curve.key: [step.metrics[curve.metric] for step in steps],
        "weight_versions": run.weight_version,
        "groups_generated": counters.get("emitted", 0) + counters.get("dropped", 0),
        "groups_trained": counters.get("trained", 0),
        "groups_dropped": counters.get("dropped", 0),
        **of_rollouts,
        "tokens_trained": counters.get("trained_tokens", 0),
        "seconds": seconds,
    }


def _of_rollouts(steps: list[Step]) -> dict[str, float]:
    first = steps[0].metrics
    return {
        "max_staleness_seen": max(step.metrics["staleness_max"] for step in steps),
        "mean_abs_logprob_diff": first["logprob_diff_mean_abs"],
        "max_ratio_deviation_first_step": first["ratio_deviation_max"],
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write summary.json."""
    file = folder / "summary.json"
    file.write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    return file
