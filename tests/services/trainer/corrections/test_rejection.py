"""Which tokens and samples are rejected."""

from functools import partial

import numpy as np
import pytest

from services.trainer.corrections.ratio_level import RatioLevel
from services.trainer.corrections.rejection import reject, veto
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched, ratio_of


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_what_is_outside_of_the_bounds_at_its_level_is_rejected(level: RatioLevel) -> None:
    tokens = mismatched(4, 0.3)
    weight, _ = corrected(partial(reject, level=level, bounds=(0.8, 1.2)), tokens)
    ratios = [ratio_of(level, own, whole) for own, whole in zip(*log_ratios(tokens), strict=True)]
    assert weight == [float(0.8 <= ratio <= 1.2) for ratio in ratios]
    assert 0 < sum(weight) < len(weight)


def test_one_catastrophic_token_takes_its_sample_with_it_and_no_other() -> None:
    tokens = mismatched(5)
    weight, _ = corrected(partial(veto, threshold=0.4), tokens)
    assert weight == [float(np.exp(whole.min()) >= 0.4) for whole in log_ratios(tokens)[1]]
    assert 0 < sum(weight) < len(weight)
