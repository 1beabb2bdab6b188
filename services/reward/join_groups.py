"""Scored attempts -> complete groups: the last attempt of a group emits or drops it, once."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import cast

from services.reward.group_filter import GroupFilter
from services.reward.group_ready import describe, is_off_version
from shared.messages import Codec, Event, Rollout
from shared.scripts import Ledger

Attempt = tuple[int, int, int, bytes]
"""Group id, group size, number of the attempt, encoded scored Rollout."""
KEEP_S = 900
"""How long the attempts of a group that is not trained stay, for a person to look at."""
CONCURRENCY = 16


class GroupJoin:
    """Joins attempts in Redis. All of it may be repeated: each attempt counts once, and each group is settled once."""

    def __init__(self, ledger: Ledger, keep: GroupFilter) -> None:
        self._ledger, self._keep = ledger, keep
        self._codec: Codec[Rollout] = Codec(Rollout)
        self._slots = asyncio.Semaphore(CONCURRENCY)

    def attempt(self, rollout: Rollout) -> Attempt:
        """WireError if the attempt is too large to travel."""
        return rollout.group_id, rollout.group_size, rollout.attempt, self._codec.encode(rollout)

    async def join(self, attempts: Sequence[Attempt]) -> dict[int, Exception]:
        """Store attempts, then settle the groups that are complete; returns those that cannot be settled, and why."""
        states = await self._ledger.join_all(attempts)
        complete = {attempt[0] for attempt, state in zip(attempts, states, strict=True) if state == "complete"}
        groups = await self.read(sorted(complete))
        failures = await asyncio.gather(*(self._settle(group) for group in groups.values()))
        if groups:
            await self._ledger.redis.unlink(*(self._ledger.keys.unscored(group_id) for group_id in groups))
        return {group: error for group, error in zip(groups, failures, strict=True) if error is not None}

    async def read(self, group_ids: Iterable[int], unscored: bool = False) -> dict[int, list[Rollout]]:
        """The stored attempts of groups, in order of their numbers."""
        place = self._ledger.keys.unscored if unscored else self._ledger.keys.group
        wanted = list(group_ids)
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
        if group[0].kind == "eval":
            await self._forget_later(group[0].group_id)

    async def _drop(self, group: list[Rollout], reason: str) -> None:
        first = group[0]
        detail = {
            "group": first.group_id,
            "reason": reason,
            "dataset": first.dataset,
            "row": first.row,
            "rewards": [rollout.reward for rollout in group],
        }
        dropped = await self._ledger.drop(
            first.group_id, first.kind, reason, Event(time.time(), "reward", "dropped", detail), None
        )
        if dropped:  # else another worker settled it, and may have found it worth training
            await self._forget_later(first.group_id)

    async def _forget_later(self, group_id: int) -> None:
        await self._ledger.redis.expire(self._ledger.keys.group(group_id), KEEP_S)
