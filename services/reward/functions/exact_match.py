"""Attempt -> 1 if the answer is the label, apart from space around it, else 0."""

from services.reward.functions.label import label_text
from services.reward.score import Score
from shared.messages import Attempt


async def score(attempt: Attempt) -> Score:
    return Score(float(attempt.text.strip() == label_text(attempt.label)))
