"""What counts as a score."""

import math

import numpy as np
import pytest

from services.reward.score import Score, ScoringFailed, read_score


def test_numbers_and_dicts_with_a_score_are_scores() -> None:
    assert read_score(True) == Score(1.0)
    assert read_score(np.float32(0.5)) == Score(0.5)
    assert read_score({"score": 2, "why": "short", "words": 3}) == Score(2.0, {"why": "short", "words": 3.0})


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf, None, "1", [1.0], {}, {"score": math.nan}])
def test_anything_else_is_an_error_and_no_reward(given: object) -> None:
    with pytest.raises(ScoringFailed, match=r"return|add it"):
        read_score(given)


def test_a_detail_that_is_not_finite_travels_as_text_and_an_object_is_refused() -> None:
    assert read_score({"score": 1, "ratio": math.inf}).detail == {"ratio": "inf"}
    with pytest.raises(ScoringFailed, match="detail parts is a list"):
        read_score({"score": 1, "parts": [1]})
