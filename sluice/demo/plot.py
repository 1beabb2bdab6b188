"""Reward by step and held-out accuracy by version -> a plot in the terminal and a PNG."""

from pathlib import Path
from typing import Any

TITLE = "{algorithm}: mean reward by step, accuracy on held-out rows"
"""plotext leaves out a title that is wider than the plot."""


def plot_in_terminal(summary: dict[str, Any]) -> str:
    """The plot as text, 80 columns wide."""
    import plotext  # noqa: PLC0415 - installed with the demo extra

    rewards, accuracy = summary["reward_curve"], summary["accuracy_curve"]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(80, 18)
    plotext.title(TITLE.format_map(summary))
    plotext.plot(list(range(1, len(rewards) + 1)), rewards, label="mean reward", marker="dot")
    plotext.scatter([v for v, _ in accuracy], [a for _, a in accuracy], label="held-out accuracy", marker="O")
    plotext.ylim(0, 1)
    plotext.xlabel("step")
    return str(plotext.uncolorize(plotext.build()))


def write_png(summary: dict[str, Any], file: Path) -> Path:
    """The same plot as a picture."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - installed with the demo extra

    rewards, accuracy = summary["reward_curve"], summary["accuracy_curve"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(rewards) + 1), rewards, label="mean reward (sampled)")
    axes.plot([v for v, _ in accuracy], [a for _, a in accuracy], "o-", label="held-out accuracy (greedy)")
    axes.set(title=TITLE.format_map(summary), xlabel="step", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    return file
