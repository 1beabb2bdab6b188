"""GroupReady messages in order of arrival -> batches of exactly one step's groups."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from shared.logs import Log
from shared.messages import Event, GroupReady
from shared.redis_connection import UNREACHABLE
from shared.streams import Message, Stream
from shared.topology import EVENTS, Keys

POLL_S = 0.5


class SampleBuffer:
    """Holds what has arrived and belongs to no step yet; the entries stay unacknowledged until a step takes them."""

    def __init__(self, groups: Stream[GroupReady], keys: Keys, groups_per_step: int, log: Log) -> None:
        self._groups, self._keys, self._size, self._log = groups, keys, groups_per_step, log
        self._waiting: list[Message[GroupReady]] = []
        groups.on_dead = self._count_lost

    async def open(self) -> None:
        """Take back what an earlier trainer of this run had received and not put into a step."""
        await self._groups.open()
        self._waiting = await self._groups.recover()

    async def keep_leases(self) -> None:
        """Renew the leases of what waits here, until cancelled."""
        await self._groups.keep_leases()

    async def next_batch(self, leave: Callable[[], Awaitable[bool]]) -> list[Message[GroupReady]] | None:
        """The next step's groups; None as soon as `leave`, asked while groups are missing, says so."""
        while len(self._waiting) < self._size:
            try:
                if await leave():
                    return None
                self._waiting += await self._groups.receive(self._size - len(self._waiting), POLL_S)
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", error=str(error))
                await asyncio.sleep(POLL_S)
        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        return batch

    async def _count_lost(self, group_id: int | None, reason: str) -> None:
        """An entry that no trainer can read returns its slot, or the step would wait for its group for ever."""
        events: Stream[Event] = Stream(self._groups.redis, self._keys.run, EVENTS)
        await self._groups.redis.hincrby(self._keys.counters, "dropped", 1)
        await self._groups.redis.hincrby(self._keys.counters, "dropped:dead", 1)
        await events.publish(Event(time.time(), "trainer", "dropped", {"group": group_id, "reason": reason}))
