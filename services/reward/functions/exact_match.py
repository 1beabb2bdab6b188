"""Rollout -> 1 if the answer is the label, apart from space around it, else 0."""

from services.reward.functions.label import label_text
from services.reward.score import Score
from shared.messages import Rollout


async def score(rollout: Rollout) -> Score:
    return Score(float(rollout.text.strip() == label_text(rollout.label)))
