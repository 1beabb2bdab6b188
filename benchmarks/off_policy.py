"""Samples of four versions ago: which loss still learns from them? A table of runs on the words, on a CPU in minutes.

`python -m benchmarks.off_policy [--staleness 4] [--seeds 0 1 2] [--learning-rates 3e-4 1e-3 2e-3] [--json FILE]`
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.learn import Progress, demonstrate, reinforce, words_run
from benchmarks.learning.words import Words, make_words
from services.trainer.tiny_model import TinyShape, write_tiny_model

SHAPE = TinyShape(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, head_dim=16)
SHOWN_RIGHT = 0.25
"""Share of the demonstrations that are right, before RL; the others copy the word."""
UPDATES = 4
"""Of a step, so that there is something to clip on-policy too."""
PROXIMAL = {"loss": {"old_policy": "proximal"}}
NEVER = 1e6
"""An upper bound of weights that none reaches."""
FRESH = "on-policy: clipping"
METHODS: dict[str, dict[str, Any]] = {
    FRESH: {},
    "clipping against the behaviour policy": {},
    "clipping against the proximal policy, not corrected": PROXIMAL,
    "decoupled PPO: the same, weights not truncated": {**PROXIMAL, "correction": {"type": "tis", "high": NEVER}},
    "decoupled PPO, weights truncated at 2 (TIS)": {**PROXIMAL, "correction": {"type": "tis"}},
    "decoupled PPO, 0 outside of 0.5 to 5 (IcePop)": {**PROXIMAL, "correction": {"type": "icepop"}},
    "CISPO": {"loss": {"type": "cispo"}},
}
COLUMNS = (
    "learning rate",
    "method",
    "staleness",
    "held-out, greedy",
    "sampled, last 5 steps",
    "sampled, all steps",
    "steps to 50 %",
    "clipped",
    "entropy at the end",
)


def learn(model: Path, words: Words, method: str, rate: float, seed: int, given: argparse.Namespace) -> Progress:
    """One run."""
    settings = words_run(
        model,
        seed=seed,
        rollout={"max_staleness": 0 if method == FRESH else given.staleness},
        trainer={"steps": given.steps, "learning_rate": rate, "updates_per_step": UPDATES, **METHODS[method]},
    )
    return reinforce(settings, words)


def start_model(folder: Path, words: Words, seed: int) -> Path:
    """A model that mostly copies; SFT is the product's too."""
    write_tiny_model(folder / "blank", seed, SHAPE)
    trainer = {"steps": 160, "learning_rate": 5e-3, "warmup_steps": 10, "schedule": "cosine"}
    settings = words_run(folder / "blank", "sft", seed=seed, trainer=trainer, rollout={"groups_per_step": 128})
    demonstrate(settings, words, SHOWN_RIGHT, folder / "start")
    return folder / "start"


def cells(rate: float, method: str, staleness: int, runs: Sequence[Progress]) -> list[str]:
    """One line, in the order of COLUMNS: means over seeds, and the smallest and largest."""
    reached = [run.first(0.5) for run in runs]
    return [
        f"{rate:g}",
        method,
        str(staleness),
        spread([run.after for run in runs]),
        spread([run.mean(slice(-5, None)) for run in runs]),
        spread([run.mean(slice(None)) for run in runs]),
        ", ".join("never" if step is None else str(step) for step in reached),
        f"{np.mean([metric(run, 'clip_fraction') for run in runs]):.1%}",
        spread([run.metrics[-1]["entropy"] for run in runs]),
    ]


def metric(run: Progress, name: str) -> float:
    """The mean over steps."""
    return float(np.mean([step[name] for step in run.metrics]))


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(given: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    """All runs; prints a line as the seeds of a method are done."""
    words = {seed: make_words(seed) for seed in given.seeds}
    models = {seed: start_model(home / str(seed), words[seed], seed) for seed in given.seeds}
    rows: list[dict[str, Any]] = []
    print(line(COLUMNS) + "\n|" + "---|" * len(COLUMNS))
    for rate in given.learning_rates:
        for method in METHODS:
            runs = [learn(models[seed], words[seed], method, rate, seed, given) for seed in given.seeds]
            staleness = int(runs[0].metrics[-1]["staleness_max"])
            print(line(cells(rate, method, staleness, runs)), flush=True)
            rows += [
                {"learning_rate": rate, "method": method, "seed": seed, "after": run.after, "right": run.right}
                for seed, run in zip(given.seeds, runs, strict=True)
            ]
    return rows


def line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def main() -> None:
    """Print the table; all curves go to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.off_policy", description=__doc__)
    parser.add_argument("--staleness", type=int, default=4, help="versions between the samples and their step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3])
    parser.add_argument("--json", type=Path, help="write the curves of all runs to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        rows = compare(given, Path(home))
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
