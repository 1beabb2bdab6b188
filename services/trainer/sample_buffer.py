"""GroupReady messages in order of arrival -> batches of exactly one step's groups, as the run's policy chooses them."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from services.trainer.release_order import ReleaseOrder
from services.trainer.select_groups import Select, fifo
from shared.await_redis import AwaitRedis
from shared.messages import Event, GroupReady
from shared.redis_connection import UNREACHABLE
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.topology import Keys

POLL_S = 0.5
PAGE = 1000


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How a step's groups are chosen."""

    groups_per_step: int
    max_staleness: int | None = None
    """A group is stale if its oldest token is more versions old than this; None where groups have no versions."""
    staleness: Literal["train", "drop", "wait"] = "train"
    select: Select = fifo
    since: int = 0
    """The newest step that went back to an older version, 0 for none. Groups with a token of a version before it were
    sampled before the rollback, and are dropped."""

    def is_stale(self, group: GroupReady, version: int) -> bool:
        """True if a step that starts from `version` comes too late for the group."""
        return self.max_staleness is not None and group.oldest_version < version - self.max_staleness


class SampleBuffer:
    """Holds what has arrived and belongs to no step yet; the entries stay unacknowledged until a step takes them."""

    def __init__(self, groups: Stream[GroupReady], keys: Keys, policy: BatchPolicy, redis: AwaitRedis) -> None:
        self._groups, self._keys, self._policy, self._redis = groups, keys, policy, redis
        self._ledger = Ledger(groups.redis, keys)
        self._order = ReleaseOrder(groups.redis, keys)
        self._waiting: dict[int, Message[GroupReady]] = {}
        groups.on_dead = self._drop_unreadable

    async def open(self) -> None:
        """Take back what an earlier trainer of this run had received and not put into a step."""
        await self._redis(self._reopen)

    async def keep_leases(self) -> None:
        """Renew the leases of what waits here, until cancelled."""
        await self._groups.keep_leases()

    async def next_batch(self, version: int, leave: Callable[[], Awaitable[bool]]) -> list[Message[GroupReady]] | None:
        """The groups of the step that starts from `version`, in training order.

        Returns:
            None as soon as `leave`, asked while groups are missing, says so.

        Raises:
            RunRejected: the run's own selection gave a wrong answer.
        """
        await self._receive(0)
        while (batch := await self._choose(version)) is None:
            if await leave():
                return None
            await self._receive(POLL_S)
        return [self._waiting.pop(group_id) for group_id in batch]

    def count_stale(self, batch: Sequence[Message[GroupReady]], version: int) -> int:
        """Groups of a batch that are older than the run allows."""
        return sum(self._policy.is_stale(message.body, version) for message in batch)

    async def _choose(self, version: int) -> list[int] | None:
        policy, size = self._policy, self._policy.groups_per_step
        if policy.since:
            await self._drop_those(lambda group: group.oldest_version < policy.since, "rolled_back", version)
        if policy.staleness != "train":  # with `wait`: what an engine made that goes on with an old version
            await self._drop_those(lambda group: policy.is_stale(group, version), "stale", version)
        if len(self._waiting) < size:
            return None
        if policy.staleness == "wait":
            return await self._redis(lambda: self._order.next(self._waiting.keys(), size))
        return policy.select([message.body for message in self._waiting.values()], size, version)

    async def _receive(self, block_s: float) -> None:
        try:
            messages = await self._groups.receive(PAGE, block_s)
        except UNREACHABLE:
            await self._redis(self._reopen)  # an answer that was lost on its way has left entries with this consumer
        else:
            await self._redis(lambda: self._take_in(messages))

    async def _reopen(self) -> None:
        await self._groups.open()
        self._waiting.clear()
        self._order.restart()
        await self._take_in(await self._groups.recover())

    async def _take_in(self, messages: Sequence[Message[GroupReady]]) -> None:
        """Keep what is still to be trained; a group that a step has, or that was dropped, is acknowledged."""
        if not messages:
            return
        async with self._groups.redis.pipeline(transaction=False) as pipe:
            for message in messages:
                pipe.getbit(self._keys.trained, message.body.group_id)
                pipe.getbit(self._keys.dropped, message.body.group_id)
            bits = cast(list[int], await pipe.execute())
        for message, trained, dropped in zip(messages, bits[::2], bits[1::2], strict=True):
            if trained or dropped:
                await message.ack()
                continue
            earlier = self._waiting.get(message.body.group_id)
            if earlier is not None and earlier.entry_id != message.entry_id:
                await earlier.ack()
            self._waiting[message.body.group_id] = message

    async def _drop_those(self, unwanted: Callable[[GroupReady], bool], reason: str, version: int) -> None:
        for group_id, message in list(self._waiting.items()):
            group = message.body
            if not unwanted(group):
                continue
            detail = {
                "group": group_id,
                "reason": reason,
                "dataset": group.dataset,
                "row": group.row,
                "oldest_version": group.oldest_version,
                "weight_version": version,
            }
            await self._drop(group_id, reason, detail, message.entry_id)
            message.stream.release(message.entry_id)
            del self._waiting[group_id]

    async def _drop_unreadable(self, group_id: int | None, reason: str) -> None:
        """An entry that no trainer can read returns its slot, or the step would wait for its group for ever."""
        if group_id is not None:
            await self._drop(group_id, "dead", {"group": group_id, "reason": reason}, "0-0")

    async def _drop(self, group_id: int, reason: str, detail: dict[str, Any], entry_id: str) -> None:
        event = Event(time.time(), "trainer", "dropped", detail)
        await self._redis(lambda: self._ledger.drop_ready(group_id, reason, event, entry_id))
