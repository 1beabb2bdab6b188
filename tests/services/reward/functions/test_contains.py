"""Answers that contain their label."""

import pytest

from services.reward.functions.contains import score
from services.reward.score import ScoringFailed
from tests.services.reward.reward_cases import rollout


async def test_the_label_may_stand_anywhere_in_the_answer() -> None:
    assert (await score(rollout(0, 0, "it is 42.", label=42))).value == 1.0
    assert (await score(rollout(0, 0, "it is 4 2", label=42))).value == 0.0


async def test_an_empty_label_is_an_error() -> None:
    with pytest.raises(ScoringFailed, match="every answer contains it"):
        await score(rollout(0, 0, label=" "))
