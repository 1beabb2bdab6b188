"""Truncated importance weights against the formula."""

from functools import partial

import numpy as np
import pytest

from services.trainer.corrections.tis import tis
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.5, 1.5)])
def test_ratios_are_kept_within_the_bounds(low: float, high: float) -> None:
    tokens = mismatched(1)
    weight, sums = corrected(partial(tis, bounds=(low, high)), tokens)
    ratios = [float(np.exp(gap)) for gap in log_ratios(tokens)[0]]
    assert weight == pytest.approx([min(max(ratio, low), high) for ratio in ratios], rel=1e-12)
    assert sums["correction_clipped_fraction"].item() == sum(ratio < low or ratio > high for ratio in ratios) > 0
