"""The stream of finished attempts, as the reward service reads it: a dead attempt drops its group, once."""

import time
from typing import Any, cast

from redis.asyncio import Redis

from shared.messages import Attempt, Event
from shared.pending import LET_GO
from shared.scripts import Ledger
from shared.streams import Delivery, Message, Stream, evaluation_of
from shared.topology import ROLLOUTS, Keys

HAND_BACK_COUNT = 10_000


class Attempts(Stream[Attempt]):
    """`Stream` with what it takes to give up or hand back an attempt."""

    def __init__(self, redis: Redis, run: str, consumer: str, delivery: Delivery) -> None:
        super().__init__(redis, run, ROLLOUTS, consumer, delivery)
        self._ledger, self._name = Ledger(redis, Keys(run)), consumer

    @property
    def gives_up_groups(self) -> bool:
        """An attempt that is given up always takes its group along."""
        return True

    async def give_up_group(self, fields: dict[bytes, bytes], reason: str) -> None:
        """Drop the group, which returns its slot; its other attempts stay in case a person sends it again."""
        if b"g" in fields:
            group_id, evaluation = int(fields[b"g"]), evaluation_of(fields)
            event = Event(time.time(), "reward", "dropped", {"group": group_id, "reason": "dead", "error": reason})
            await self._ledger.drop(group_id, "eval" if evaluation else "train", "dead", event, evaluation)

    async def fail(self, message: Message[Attempt], error: str) -> int:
        """Let a failed attempt be delivered again, or bury it after its last delivery; returns its deliveries."""
        if message.deliveries >= self.delivery.max_deliveries:
            await message.dead_letter(error)
        else:
            message.retry_later()
        return message.deliveries

    async def hand_back(self) -> None:
        """Give all that this consumer holds to the others at once, as if it had not been delivered."""
        group = ROLLOUTS.group or ""
        entries = await self.redis.xpending_range(self.key, group, "-", "+", HAND_BACK_COUNT, consumername=self._name)
        idle_ms = int(self.delivery.lease_s * 1000)
        deliveries = {cast(bytes, entry["message_id"]).decode(): int(entry["times_delivered"]) for entry in entries}
        async with self.redis.pipeline(transaction=False) as pipe:
            for entry_id in self._held & deliveries.keys():
                count = max(deliveries[entry_id] - 1, 0)
                ids: list[Any] = [entry_id]
                pipe.xclaim(self.key, group, LET_GO, 0, ids, idle=idle_ms, retrycount=count, justid=True)
            await pipe.execute()
