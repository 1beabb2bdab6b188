"""Seeds -> what the run after SFT adds to the demo's held-out accuracy: `python -m benchmarks.demo_seeds`."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from sluice.demo.summary import CURVES

COLUMNS = (
    "algorithm",
    "seed",
    "before",
    "after",
    "gain",
    "curve",
    "its first 5 steps",
    "its last 5 steps",
    "sft s",
    "rl s",
    "logprob diff",
)


def run_demo(home: Path, seed: int, arguments: list[str]) -> dict[str, Any]:
    """The summary of one demo; CalledProcessError if it fails."""
    command = [sys.executable, "-c", "from sluice.cli.main import run; run()", "demo", "--json"]
    subprocess.run([*command, "--home", str(home), "--seed", str(seed), *arguments], check=True, stdout=sys.stderr)
    return json.loads((home / "summary.json").read_text())


def row(summary: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one seed, in the order of COLUMNS."""
    before, after, curve = summary["accuracy_before_rl"], summary["accuracy_after_rl"], CURVES[summary["kind"]]
    seconds, values = summary["seconds"], summary[curve.key]
    difference = summary.get("mean_abs_logprob_diff")
    return (
        str(summary["algorithm"]),
        str(summary["seed"]),
        f"{before:.3f}",
        f"{after:.3f}",
        f"{after - before:+.3f}",
        curve.title,
        f"{fmean(values[:5]):.3f}",
        f"{fmean(values[-5:]):.3f}",
        f"{seconds['sft']:.0f}",
        f"{seconds['rl']:.0f}",
        "-" if difference is None else f"{difference:.1e}",
    )


def main() -> None:
    """Print a Markdown table; arguments after `--` go to the demo."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("runs"))
    given, rest = parser.parse_known_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for seed in given.seeds:
        home = given.home / f"demo-seed-{seed}"
        summary = run_demo(home, seed, [argument for argument in rest if argument != "--"])
        print("| " + " | ".join(row(summary)) + " |", flush=True)


if __name__ == "__main__":
    main()
