"""A teacher beside a reward: what training gets, what an evaluation does not, and what a failure of one does."""

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from services.reward.functions import exact_match
from services.reward.score import Reward, Score, ScoringFailed
from services.reward.teacher.beside_reward import beside
from services.reward.teacher.served_teacher import ServedTeacher
from shared.messages import Rollout
from tests.services.reward.reward_cases import rollout

SAID = np.asarray([-1.0, -2.0], np.float32)


class Teacher:
    """Says the same of every attempt, once it is let."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.given_up = 0
        self.ready, self.reachable = asyncio.Event(), asyncio.Event()
        self.ready.set()

    async def logprobs(self, one: Rollout) -> Any:
        self.asked.append(one.attempt)
        try:
            await self.ready.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return SAID

    async def available(self) -> None:
        await self.reachable.wait()

    def beside(self, reward: Reward) -> Reward:
        return beside(reward, cast(ServedTeacher, self))


async def test_an_attempt_gets_its_score_and_what_the_teacher_says() -> None:
    teacher = Teacher()
    reward = teacher.beside(Reward(exact_match.score))
    assert reward.score_rollout is not None
    found = await reward.score_rollout(rollout(0, 0, "2"))
    assert (found.value, found.teacher_logprobs) == (1.0, SAID)


async def test_an_evaluation_asks_no_teacher() -> None:
    teacher = Teacher()
    reward = teacher.beside(Reward(exact_match.score))
    assert reward.score_rollout is not None
    assert await reward.score_rollout(rollout(0, 0, "2", kind="eval")) == Score(1.0)
    assert teacher.asked == []


async def test_a_group_reward_scores_the_group_and_the_teacher_is_asked_about_each_attempt() -> None:
    async def rank(group: list[Rollout]) -> list[Score]:
        return [Score(float(number)) for number in range(len(group))]

    teacher = Teacher()
    reward = teacher.beside(Reward(score_group=rank))
    assert reward.score_group is not None
    found = await reward.score_group([rollout(0, 0), rollout(0, 1)])
    assert [(one.value, one.teacher_logprobs) for one in found] == [(0.0, SAID), (1.0, SAID)]
    assert teacher.asked == [0, 1]


async def test_an_attempt_that_gets_no_score_gives_the_teacher_up() -> None:
    async def fail(one: Rollout) -> Score:
        await asyncio.sleep(0)
        raise ScoringFailed("no judge today")

    teacher = Teacher()
    teacher.ready.clear()
    reward = teacher.beside(Reward(score_rollout=fail))
    assert reward.score_rollout is not None
    with pytest.raises(ScoringFailed, match="no judge today"):
        await reward.score_rollout(rollout(0, 0))
    assert teacher.given_up == 1


async def test_new_work_waits_for_both() -> None:
    teacher, judge = Teacher(), asyncio.Event()

    async def available() -> None:
        await judge.wait()

    reward = teacher.beside(Reward(exact_match.score, available=available))
    waiting = asyncio.create_task(reward.available())
    judge.set()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    teacher.reachable.set()
    await asyncio.wait_for(waiting, 5)
