"""Scored attempts -> complete groups: the last attempt of a group emits or drops it, once."""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from services.reward.group_filter import GroupFilter, RolloutFilter
from services.reward.group_ready import describe, is_off_version
from services.reward.own_attempts import OwnAttempts
from services.reward.score import Score
from services.reward.score_end import UNSCORED, end_of
from services.reward.whole_rollouts import WholeRollouts, foreign, forward_of
from shared.joining import ScoredAttempt
from shared.messages import Attempt, Codec, Event
from shared.scripts import Ledger
from shared.streams import Message

CONCURRENCY = 16
Group = Sequence[Attempt]


class GroupJoin:
    """Joins attempts in Redis. All of it may be repeated: each attempt counts once, and each group is settled once."""

    def __init__(self, ledger: Ledger, keep: GroupFilter) -> None:
        self._ledger, self._keep = ledger, keep
        self.rollouts = WholeRollouts(ledger.redis, ledger.keys)
        self._codec: Codec[Attempt] = Codec(Attempt)
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._ours = OwnAttempts()

    def scored(self, attempt: Attempt, forward: bytes, score: Score) -> ScoredAttempt:
        """An attempt that is not on the stream any more, and its score; WireError if it is too large to travel."""
        scored = _with(attempt, score)
        return ScoredAttempt(scored, forward, self._codec.encode(scored))

    def entry(self, message: Message[Attempt], score: Score) -> ScoredAttempt:
        """An attempt as it lies on the stream, and its score."""
        end = end_of(score, message.fields.get(b"m", b""))
        if end is None:
            return self.scored(message.body, forward_of(message), score)
        return ScoredAttempt(_with(message.body, score), forward_of(message), end, message.entry_id, len(UNSCORED))

    async def join(self, scored: Sequence[ScoredAttempt]) -> dict[int, Exception]:
        """Store attempts, then settle the groups that are complete; returns those that cannot be settled, and why."""
        complete: dict[int, ScoredAttempt] = {}
        failures: dict[int, Exception] = {}
        for one, answer in zip(scored, await self._ledger.join(scored), strict=True):
            self._ours.joined(one, answer)
            if answer.state == "complete":
                complete[one.attempt.group_id] = one
            elif answer.state == "foreign":
                failures[one.attempt.group_id] = foreign(one.attempt)
        groups: dict[int, Group] = {g: group for g, last in complete.items() if (group := self._ours.whole(last))}
        groups |= await self.read(sorted(complete - groups.keys()))
        if groups:
            failures |= await self._settle(groups)
            await self._ledger.redis.unlink(*(self._ledger.keys.unscored(group_id) for group_id in groups))
        return failures

    async def read(self, group_ids: Iterable[int]) -> dict[int, Group]:
        """The stored attempts of groups, in order of their numbers."""
        wanted = list(group_ids)
        if not wanted:
            return {}
        async with self._ledger.redis.pipeline(transaction=False) as pipe:
            for group_id in wanted:
                pipe.hgetall(self._ledger.keys.group(group_id))
            hashes = cast(list[dict[bytes, bytes]], await pipe.execute())
        return {
            group_id: [self._codec.decode(stored[number]) for number in sorted(stored, key=int)]
            for group_id, stored in zip(wanted, hashes, strict=True)
            if stored  # else another worker settled the group, and it was trained or forgotten since
        }

    async def _settle(self, groups: dict[int, Group]) -> dict[int, Exception]:
        """Emit, tally or drop each group as the filter says; those on which the filter failed, and how."""
        shown = await self._show(groups)
        failures: dict[int, Exception] = {}
        ready: list[Group] = []
        others: list[Awaitable[None]] = []
        for group_id in shown:
            group = groups[group_id]
            if group[0].kind == "eval":
                others.append(self._tally(group))
                continue
            try:
                reason = self._keep(shown[group_id])
            except Exception as error:  # noqa: BLE001  the filter is a user's; its group is tried again, the others go on
                failures[group_id] = error
                continue
            if reason is None:
                ready.append(group)
            else:
                others.append(self._drop(group, reason))
        await asyncio.gather(self._emit(ready), *map(self._in_turn, others))
        return failures

    async def _show(self, groups: dict[int, Group]) -> Mapping[int, Group]:
        """What the filter is to see of the groups; none that another worker settled and that is gone since."""
        if not isinstance(self._keep, RolloutFilter):
            return groups
        judged = [group_id for group_id, group in groups.items() if group[0].kind != "eval"]
        return {**{g: groups[g] for g in groups.keys() - judged}, **await self.rollouts.of_groups(judged)}

    async def _emit(self, groups: list[Group]) -> None:
        if groups:
            await self._ledger.emit(*((describe(group), sum(one.tokens for one in group)) for group in groups))

    async def _in_turn(self, work: Awaitable[None]) -> None:
        async with self._slots:
            await work

    async def _tally(self, group: Group) -> None:
        await self._ledger.tally(describe(group), is_off_version(group))

    async def _drop(self, group: Group, reason: str) -> None:
        first = group[0]
        detail = {
            "group": first.group_id,
            "reason": reason,
            "dataset": first.dataset,
            "row": first.row,
            "rewards": [attempt.reward for attempt in group],
        }
        event = Event(time.time(), "reward", "dropped", detail)
        await self._ledger.drop(first.group_id, first.kind, reason, event, None)


def _with(attempt: Attempt, score: Score) -> Attempt:
    return replace(attempt, reward=score.value, reward_detail=score.detail, teacher_logprobs=score.teacher_logprobs)
