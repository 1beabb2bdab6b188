"""A finished demo -> its numbers: accuracy before and after, the reward curve, what became of every group."""

import json
from pathlib import Path
from typing import Any

from sluice.answers import Run, Step

HELD_OUT = "held-out"


def summarise(run: Run, steps: list[Step], seconds: dict[str, float], seed: int, algorithm: str) -> dict[str, Any]:
    """The numbers of the run after SFT.

    `accuracy_before_rl` and `accuracy_after_rl` are the shares of held-out rows that version 0 and the last version
    answer correctly, sampled greedily; `mean_abs_logprob_diff` compares trainer and engine on the first step, of whose
    updates all but the first come after the policy has moved.
    """
    accuracy = {e.version: e.reward_mean for e in run.evaluations if e.dataset == HELD_OUT and e.complete}
    counters = run.counters
    first = steps[0].metrics
    return {
        "algorithm": algorithm,
        "seed": seed,
        "accuracy_before_rl": accuracy[0],
        "accuracy_after_rl": accuracy[run.steps],
        "held_out_rows": next(e.groups for e in run.evaluations if e.version == 0),
        "accuracy_curve": sorted(accuracy.items()),
        "reward_curve": [step.metrics["reward_mean"] for step in steps],
        "weight_versions": run.weight_version,
        "groups_generated": counters.get("emitted", 0) + counters.get("dropped", 0),
        "groups_trained": counters.get("trained", 0),
        "groups_dropped": counters.get("dropped", 0),
        "max_staleness_seen": max(step.metrics["staleness_max"] for step in steps),
        "mean_abs_logprob_diff": first["logprob_diff_mean_abs"],
        "max_ratio_deviation_first_step": first["ratio_deviation_max"],
        "tokens_trained": counters.get("trained_tokens", 0),
        "seconds": seconds,
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write summary.json."""
    file = folder / "summary.json"
    file.write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    return file
