"""Weights that are 0 outside of the bounds."""

from functools import partial

import numpy as np
import pytest

from services.trainer.corrections.icepop import icepop
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched


def test_tokens_outside_of_the_bounds_weigh_nothing_and_others_their_ratio() -> None:
    tokens = mismatched(2)
    weight, sums = corrected(partial(icepop, bounds=(0.5, 1.5)), tokens)
    ratios = [float(np.exp(gap)) for gap in log_ratios(tokens)[0]]
    assert weight == pytest.approx([ratio if 0.5 <= ratio <= 1.5 else 0.0 for ratio in ratios], rel=1e-12)
    assert sums["correction_clipped_fraction"].item() == weight.count(0.0) > 0
