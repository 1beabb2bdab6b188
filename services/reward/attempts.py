"""The stream of finished attempts, as the reward service reads it: a dead attempt drops its group, once."""

import time
from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import Redis

from shared.messages import Event, Rollout
from shared.scripts import Ledger
from shared.streams import Delivery, Message, Stream
from shared.topology import ROLLOUTS, Keys

HAND_BACK_COUNT = 10_000


class Attempts(Stream[Rollout]):
    """`Stream` with what it takes to give up or hand back an attempt."""

    def __init__(self, redis: Redis, run: str, consumer: str, delivery: Delivery) -> None:
        super().__init__(redis, run, ROLLOUTS, consumer, delivery)
        self._ledger, self._keys, self._name = Ledger(redis, Keys(run)), Keys(run), consumer

    async def bury(self, entry_id: str, fields: dict[bytes, bytes], reason: str, deliveries: int) -> None:
        """Drop the group, which returns its slot, then move the entry to the dead letters."""
        if b"g" in fields:
            group_id = int(fields[b"g"])
            version, is_eval, dataset = fields.get(b"e", b"").decode().partition("|")
            event = Event(time.time(), "reward", "dropped", {"group": group_id, "reason": "dead", "error": reason})
            kind, evaluation = ("eval", (int(version), dataset)) if is_eval else ("train", None)
            if await self._ledger.drop(
                group_id, kind, "dead", event, evaluation
            ):  # else its attempts may be in training
                await self.redis.delete(self._keys.group(group_id), self._keys.unscored(group_id))
        await super().bury(entry_id, fields, reason, deliveries)

    async def acknowledge(self, messages: Sequence[Message[Rollout]]) -> None:
        """Acknowledge and delete all of them, in one transaction."""
        ids: list[Any] = [message.entry_id for message in messages]
        if not ids:
            return
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(self.key, ROLLOUTS.group or "", *ids)
            pipe.xdel(self.key, *ids)
            await pipe.execute()
        for entry_id in ids:
            self.release(entry_id)

    async def fail(self, message: Message[Rollout], error: str) -> int:
        """Let a failed attempt be delivered again, or bury it after its last delivery; returns its deliveries."""
        entry = await self.redis.xpending_range(self.key, ROLLOUTS.group or "", message.entry_id, message.entry_id, 1)
        deliveries = int(entry[0]["times_delivered"]) if entry else 0
        if deliveries >= self.delivery.max_deliveries:
            await message.dead_letter(error, deliveries)
        else:
            message.retry_later()
        return deliveries

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
                pipe.xclaim(self.key, group, self._name, 0, ids, idle=idle_ms, retrycount=count, justid=True)
            await pipe.execute()
