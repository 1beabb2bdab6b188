"""The demo's plot."""

from pathlib import Path
from typing import Any

import pytest

from sluice.demo.plot import plot_in_terminal, write_png
from sluice.demo.recipe import DemoAlgorithm, make_recipe
from sluice.demo.summary import CURVES


def summary_of(algorithm: DemoAlgorithm, values: list[float]) -> dict[str, Any]:
    kind = make_recipe(algorithm, 0, []).second["kind"]
    named = {"algorithm": algorithm.written, "kind": kind, CURVES[kind].key: values}
    return {**named, "accuracy_curve": [(0, 0.1), (3, 0.8)]}


@pytest.mark.parametrize("algorithm", DemoAlgorithm)
def test_the_plot_says_whose_it_is_and_what_its_curve_is(algorithm: DemoAlgorithm) -> None:
    first = plot_in_terminal(summary_of(algorithm, [0.1, 0.5, 0.7])).splitlines()[0]
    curve = {"sft": "loss", "dpo": "accuracy of pairs"}.get(algorithm, "mean reward")
    assert first.strip() == f"{algorithm.written}: {curve} by step, accuracy on held-out rows"


@pytest.mark.parametrize(("largest", "top"), [(0.7, "1.0"), (2.4, "2.4")])
def test_the_scale_ends_at_1_or_where_a_loss_begins(largest: float, top: str) -> None:
    drawn = plot_in_terminal(summary_of(DemoAlgorithm.SFT, [largest, 0.3, 0.2])).splitlines()
    assert next(line for line in drawn if "┤" in line).strip().startswith(top)


def test_the_picture_is_written(tmp_path: Path) -> None:
    file = write_png(summary_of(DemoAlgorithm.DPO, [0.5, 0.9, 1.0]), tmp_path / "plot.png")
    assert file.read_bytes().startswith(b"\x89PNG")
