"""Answers that are their label."""

import pytest

from services.reward.functions.exact_match import score
from services.reward.score import ScoringFailed
from tests.services.reward.reward_cases import rollout


@pytest.mark.parametrize(
    ("text", "label", "reward"),
    [(" 7\n", "7", 1.0), ("7", 7, 1.0), ("0.5", 0.5, 1.0), ("true", True, 1.0), ("7.", "7", 0.0), ("", " ", 1.0)],
)
async def test_an_answer_matches_its_label_as_text(text: str, label: object, reward: float) -> None:
    assert (await score(rollout(0, 0, text, label=label))).value == reward


@pytest.mark.parametrize("label", [None, [1], {"a": 1}])
async def test_a_row_without_a_comparable_label_is_an_error(label: object) -> None:
    with pytest.raises(ScoringFailed, match="needs a text or a number"):
        await score(rollout(0, 0, label=label))
