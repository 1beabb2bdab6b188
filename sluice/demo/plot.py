"""The curve of a run by step and held-out accuracy by version -> a plot in the terminal and a PNG."""

from pathlib import Path
from typing import Any

from sluice.demo.summary import CURVES

TITLE = "{algorithm}: {curve} by step, accuracy on held-out rows"
"""plotext leaves out a title that is wider than the plot."""


def plot_in_terminal(summary: dict[str, Any]) -> str:
    """The plot as text, 80 columns wide."""
    import plotext  # noqa: PLC0415 - installed with the demo extra

    curve, values, accuracy = CURVES[summary["kind"]], _values(summary), summary["accuracy_curve"]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(80, 18)
    plotext.title(TITLE.format(algorithm=summary["algorithm"], curve=curve.title))
    plotext.plot(list(range(1, len(values) + 1)), values, label=curve.title, marker="dot")
    plotext.scatter([v for v, _ in accuracy], [a for _, a in accuracy], label="held-out accuracy", marker="O")
    plotext.ylim(0, _top(values))
    plotext.xlabel("step")
    return str(plotext.uncolorize(plotext.build()))


def write_png(summary: dict[str, Any], file: Path) -> Path:
    """The same plot as a picture."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - installed with the demo extra

    curve, values, accuracy = CURVES[summary["kind"]], _values(summary), summary["accuracy_curve"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(values) + 1), values, label=curve.legend)
    style = "o-" if len(accuracy) > 2 else "o"  # of what lies between the ends nothing was measured
    axes.plot([v for v, _ in accuracy], [a for _, a in accuracy], style, label="held-out accuracy (greedy)")
    title = TITLE.format(algorithm=summary["algorithm"], curve=curve.title)
    axes.set(title=title, xlabel="step", ylim=(0, _top(values)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    return file


def _values(summary: dict[str, Any]) -> list[float]:
    return summary[CURVES[summary["kind"]].key]


def _top(values: list[float]) -> float:
    """Of the scale: accuracies end at 1, and a loss may begin above it."""
    return max(1.0, *values)
