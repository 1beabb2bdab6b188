"""A reward function -> what the worker does with one attempt: score it, or gather its group and score that."""

import asyncio
from collections.abc import Awaitable, Callable

from services.reward.join_groups import CONCURRENCY, GroupJoin
from services.reward.score import Reward, Score
from services.reward.whole_rollouts import foreign, forward_of
from services.reward.worker import ScoreAttempt
from shared.await_redis import AwaitRedis
from shared.joining import ScoredAttempt
from shared.messages import Attempt, Rollout
from shared.scripts import Ledger
from shared.streams import Message


def scoring(reward: Reward, groups: GroupJoin, ledger: Ledger, redis: AwaitRedis) -> ScoreAttempt:
    """The way of scoring that the reward asks for."""
    if reward.score_group is not None:
        return GroupScoring(reward.score_group, groups, ledger, redis)
    score, score_rollout = reward.score, reward.score_rollout

    async def score_alone(message: Message[Attempt]) -> list[ScoredAttempt]:
        assert score is not None, "a reward scores attempts, rollouts or groups"
        return [groups.entry(message, await score(message.body))]

    async def score_complete(message: Message[Attempt]) -> list[ScoredAttempt]:
        assert score_rollout is not None
        rollout = await redis(lambda: groups.rollouts.of_message(message))
        return [groups.entry(message, await score_rollout(rollout))] if rollout else []

    return score_alone if score_rollout is None else score_complete


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

    async def __call__(self, message: Message[Attempt]) -> list[ScoredAttempt]:
        group = await self._redis(lambda: self._gather(message))
        scores = await self._score_group(group) if group else []
        forward = forward_of(message)
        return [self._groups.scored(one, forward, score) for one, score in zip(group, scores, strict=True)]

    async def _gather(self, message: Message[Attempt]) -> list[Rollout]:
        """The whole group if this attempt completes it, else nothing."""
        attempt, group_id = message.body, message.body.group_id
        unscored = ScoredAttempt(attempt, forward_of(message), message.fields[b"m"])
        async with self._slots:
            (joined,) = await self._ledger.join([unscored], unscored=True)
            if joined.state == "settled":  # a copy of what was counted before
                await self._ledger.redis.unlink(self._ledger.keys.unscored(group_id))
            if joined.state == "foreign":
                raise foreign(attempt)
            if joined.state != "complete":
                return []
            return (await self._groups.rollouts.of_groups([group_id], unscored=True)).get(group_id, [])
