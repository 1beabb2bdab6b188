"""The demo's plot."""

import pytest

from sluice.demo.plot import plot_in_terminal
from sluice.demo.recipe import DemoAlgorithm


@pytest.mark.parametrize("algorithm", DemoAlgorithm)
def test_the_plot_says_whose_it_is(algorithm: DemoAlgorithm) -> None:
    curves = {"reward_curve": [0.1, 0.5, 0.7], "accuracy_curve": [(0, 0.1), (3, 0.8)]}
    first = plot_in_terminal({**curves, "algorithm": algorithm.written}).splitlines()[0]
    assert first.strip() == f"{algorithm.written}: mean reward by step, accuracy on held-out rows"
