"""Attempt -> 1 if the answer is mathematically equal to the label, else 0; an answer over the time limit scores 0."""

from collections.abc import Awaitable, Callable

from services.reward.functions.answer_pool import AnswerPool
from services.reward.functions.label import label_text
from services.reward.score import Score
from shared.messages import Attempt


def score_with(pool: AnswerPool) -> Callable[[Attempt], Awaitable[Score]]:
    """The reward function whose comparisons run in the pool's processes."""

    async def score(attempt: Attempt) -> Score:
        verdict = await pool.check(attempt.text, label_text(attempt.label))
        if verdict is None:
            return Score(0.0, {"timed_out": True})
        return verdict

    return score
