"""Scored attempts -> complete groups: the last attempt of a group emits or drops it, once."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from services.reward.group_filter import GroupFilter
from services.reward.group_ready import describe, is_off_version
from services.reward.own_attempts import OwnAttempts
from services.reward.score import Score
from services.reward.score_end import UNSCORED, end_of
from shared.accounts import margins
from shared.messages import Codec, Event, Rollout
from shared.scripts import Attempt, Ledger, ScoredEntry
from shared.streams import Message

CONCURRENCY = 16


class GroupJoin:
    """Joins attempts in Redis. All of it may be repeated: each attempt counts once, and each group is settled once."""

    def __init__(self, ledger: Ledger, keep: GroupFilter) -> None:
        self._ledger, self._keep = ledger, keep
        self._codec: Codec[Rollout] = Codec(Rollout)
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._ours = OwnAttempts()

    def attempt(self, rollout: Rollout) -> Attempt:
        """WireError if the attempt is too large to travel."""
        payload = self._codec.encode(rollout)
        if rollout.reward is not None:
            self._ours.scored(payload, rollout)
        return rollout.group_id, rollout.group_size, rollout.attempt, payload, margins(rollout)

    def entry(self, message: Message[Rollout], score: Score) -> ScoredEntry | Attempt:
        """An attempt as it lies on the stream, and its score."""
        rollout = replace(message.body, reward=score.value, reward_detail=score.detail)
        end = end_of(score, message.fields.get(b"m", b""))
        if end is None:
            return self.attempt(rollout)
        self._ours.scored(end, rollout)
        number, replaces, tokens = rollout.attempt, len(UNSCORED), margins(rollout)
        return ScoredEntry(message.entry_id, rollout.group_id, rollout.group_size, number, end, replaces, tokens)

    async def join(self, scored: Sequence[ScoredEntry | Attempt]) -> dict[int, Exception]:
        """Store attempts, then settle the groups that are complete; returns those that cannot be settled, and why."""
        complete: set[int] = set()
        entries = [one for one in scored if isinstance(one, ScoredEntry)]
        for one, answer in zip(entries, await self._ledger.join_entries(entries) if entries else [], strict=True):
            self._ours.joined(one.end, answer)
            if answer.state == "complete":
                complete.add(one.group_id)
        attempts = [one for one in scored if not isinstance(one, ScoredEntry)]
        for one, answer in zip(attempts, await self._ledger.join_each(attempts) if attempts else [], strict=True):
            self._ours.joined(one[3], answer)
            if answer.state == "complete":
                complete.add(one[0])
        groups = {group_id: group for group_id in complete if (group := self._ours.whole(group_id))}
        groups |= await self.read(sorted(complete - groups.keys()))
        failures = await asyncio.gather(*(self._settle(group) for group in groups.values()))
        if groups:
            await self._ledger.redis.unlink(*(self._ledger.keys.unscored(group_id) for group_id in groups))
        return {group: error for group, error in zip(groups, failures, strict=True) if error is not None}

    async def read(self, group_ids: Iterable[int], unscored: bool = False) -> dict[int, list[Rollout]]:
        """The stored attempts of groups, in order of their numbers."""
        place = self._ledger.keys.unscored if unscored else self._ledger.keys.group
        wanted = list(group_ids)
        if not wanted:
            return {}
        async with self._ledger.redis.pipeline(transaction=False) as pipe:
            for group_id in wanted:
                pipe.hgetall(place(group_id))
            hashes = cast(list[dict[bytes, bytes]], await pipe.execute())
        return {
            group_id: [self._codec.decode(stored[number]) for number in sorted(stored, key=int)]
            for group_id, stored in zip(wanted, hashes, strict=True)
            if stored  # else another worker settled the group, and it was trained or forgotten since
        }

    async def _settle(self, group: list[Rollout]) -> Exception | None:
        try:
            reason = None if group[0].kind == "eval" else self._keep(group)
        except Exception as error:  # noqa: BLE001  the filter is a user's; its group is tried again, the others go on
            return error
        async with self._slots:
            if reason is None:
                await self._emit(group)
            else:
                await self._drop(group, reason)
        return None

    async def _emit(self, group: list[Rollout]) -> None:
        tokens = sum(len(rollout.token_ids) for rollout in group)
        await self._ledger.emit(describe(group), tokens, is_off_version(group))

    async def _drop(self, group: list[Rollout], reason: str) -> None:
        first = group[0]
        detail = {
            "group": first.group_id,
            "reason": reason,
            "dataset": first.dataset,
            "row": first.row,
            "rewards": [rollout.reward for rollout in group],
        }
        event = Event(time.time(), "reward", "dropped", detail)
        await self._ledger.drop(first.group_id, first.kind, reason, event, None)
