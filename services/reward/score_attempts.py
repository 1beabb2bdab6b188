"""A reward function -> what the worker does with one attempt: score it, or gather its group and score that."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.reward.join_groups import CONCURRENCY, GroupJoin
from services.reward.score import Reward, Score
from services.reward.worker import ScoreAttempt
from shared.await_redis import AwaitRedis
from shared.messages import Rollout
from shared.scripts import Attempt, Ledger, ScoredEntry
from shared.streams import Message


def scoring(reward: Reward, groups: GroupJoin, ledger: Ledger, redis: AwaitRedis) -> ScoreAttempt:
    """The way of scoring that the reward asks for."""
    if reward.score_group is not None:
        return GroupScoring(reward.score_group, groups, ledger, redis)
    score = reward.score
    assert score is not None, "a reward scores attempts or groups"

    async def score_alone(message: Message[Rollout]) -> list[ScoredEntry | Attempt]:
        return [groups.entry(message, await score(message.body))]

    return score_alone


class GroupScoring:
    """Gathers unscored attempts in Redis; the message that completes the group scores all of it.

    Whoever scores a group twice after a crash changes nothing: the first stored score of an attempt stays.
    """

    def __init__(
        self,
        score_group: Callable[[list[Rollout]], Awaitable[list[Score]]],
        groups: GroupJoin,
        ledger: Ledger,
        redis: AwaitRedis,
    ) -> None:
        self._score_group, self._groups, self._ledger, self._redis = score_group, groups, ledger, redis
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def __call__(self, message: Message[Rollout]) -> list[ScoredEntry | Attempt]:
        group = await self._redis(lambda: self._gather(message.body))
        scores = await self._score_group(group) if group else []
        return [self._groups.attempt(_with(one, score)) for one, score in zip(group, scores, strict=True)]

    async def _gather(self, rollout: Rollout) -> list[Rollout]:
        """The whole group if this attempt completes it, else nothing."""
        async with self._slots:
            (state,) = await self._ledger.join_all([self._groups.attempt(rollout)], unscored=True)
            if state == "settled":  # a copy of what was counted before
                await self._ledger.redis.unlink(self._ledger.keys.unscored(rollout.group_id))
            if state != "complete":
                return []
            return (await self._groups.read([rollout.group_id], unscored=True)).get(rollout.group_id, [])


def _with(rollout: Rollout, score: Score) -> Rollout:
    return replace(rollout, reward=score.value, reward_detail=score.detail)
