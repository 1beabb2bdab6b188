"""Attempt -> 1 if the label occurs in the answer, else 0."""

from services.reward.functions.label import label_text
from services.reward.score import Score, ScoringFailed
from shared.messages import Attempt


async def score(attempt: Attempt) -> Score:
    label = label_text(attempt.label)
    if not label:
        raise ScoringFailed("the row's label is empty, and every answer contains it; give it a label")
    return Score(float(label in attempt.text))
