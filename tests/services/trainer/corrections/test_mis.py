"""Importance weights at every level and in every mode, against numpy sample by sample."""

from functools import partial

import pytest

from services.trainer.corrections.mis import MisMode, mis
from services.trainer.corrections.ratio_level import RatioLevel
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched, ratio_of

LOW, HIGH = 0.8, 1.3


def bounded(ratio: float, mode: str) -> float:
    if mode == "mask":
        return ratio if LOW <= ratio <= HIGH else 0.0
    return min(ratio, HIGH) if mode == "truncate" else min(max(ratio, LOW), HIGH)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "clip", "mask"])
def test_the_ratio_of_the_level_is_bounded_as_the_mode_says(level: RatioLevel, mode: MisMode) -> None:
    tokens = mismatched(3, 0.3)
    weight, sums = corrected(partial(mis, level=level, mode=mode, bounds=(LOW, HIGH)), tokens)
    ratios = [ratio_of(level, own, whole) for own, whole in zip(*log_ratios(tokens), strict=True)]
    expected = [bounded(ratio, mode) for ratio in ratios]
    assert weight == pytest.approx(expected, rel=1e-10)
    changed = sum(new != ratio for new, ratio in zip(expected, ratios, strict=True))
    assert sums["correction_clipped_fraction"].item() == changed
