"""A reward -> one that also asks a teacher about what is trained, at the same time."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.reward.score import Reward, Score
from services.reward.teacher.served_teacher import ServedTeacher
from shared.messages import Rollout
from shared.tasks import end

T = TypeVar("T")


def beside(reward: Reward, teacher: ServedTeacher) -> Reward:
    """Attempts are scored as before; those of training get what the teacher says of their tokens with the score."""

    async def available() -> None:
        await reward.available()
        await teacher.available()

    alone, group = reward.score_rollout or reward.score, reward.score_group

    async def score_rollout(rollout: Rollout) -> Score:
        assert alone is not None, "a reward scores attempts, rollouts or groups"
        scores = await _with_teacher(_one(alone(rollout)), teacher, [rollout])
        return scores[0]

    async def score_group(rollouts: list[Rollout]) -> list[Score]:
        assert group is not None
        return await _with_teacher(group(rollouts), teacher, rollouts)

    if group is not None:
        return Reward(score_group=score_group, available=available)
    return Reward(score_rollout=score_rollout, available=available)


async def _one(score: Awaitable[Score]) -> list[Score]:
    return [await score]


async def _with_teacher(
    scoring: Awaitable[list[Score]], teacher: ServedTeacher, rollouts: Sequence[Rollout]
) -> list[Score]:
    """An evaluation trains nothing, so no teacher is asked about it."""
    if rollouts[0].kind == "eval":
        return await scoring
    asking = [asyncio.create_task(teacher.logprobs(rollout)) for rollout in rollouts]
    try:
        scores, told = await scoring, [await one for one in asking]
    finally:
        await end(*asking)
    return [replace(score, teacher_logprobs=one) for score, one in zip(scores, told, strict=True)]
