"""Rollout -> 1 if the answer is mathematically equal to the label, else 0; an answer over the time limit scores 0."""

from collections.abc import Awaitable, Callable

from services.reward.functions.answer_pool import AnswerPool
from services.reward.functions.label import label_text
from services.reward.score import Score
from shared.messages import Rollout


def score_with(pool: AnswerPool) -> Callable[[Rollout], Awaitable[Score]]:
    """The reward function whose comparisons run in the pool's processes."""

    async def score(rollout: Rollout) -> Score:
        verdict = await pool.check(rollout.text, label_text(rollout.label))
        if verdict is None:
            return Score(0.0, {"timed_out": True})
        return verdict

    return score
