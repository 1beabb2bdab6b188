"""Stream[M]: publish, consume in a group, renew leases, forward (publish and ack at once), reclaim, dead-letter."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.errors import WireError
from shared.messages import Codec, DeadLetter
from shared.redis_connection import UNREACHABLE
from shared.topology import DEAD, Keys, StreamSpec

M = TypeVar("M")
N = TypeVar("N")
OnDead = Callable[[int | None, str], Awaitable[None]]
"""Called with (group id if known, reason) before a dead entry is acknowledged."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a consumer group treats an entry: how long a silent consumer keeps it, and how often it is tried."""

    lease_s: float = 30.0
    max_deliveries: int = 5


class Stream(Generic[M]):
    """One stream of one run, as one consumer (or as a plain reader or writer) sees it."""

    def __init__(
        self, redis: Redis, run: str, spec: StreamSpec, consumer: str = "", delivery: Delivery | None = None
    ) -> None:
        self.spec = spec
        self.key = Keys(run).stream(spec)
        self.codec: Codec[M] = Codec(spec.message)
        self.redis = redis
        self.delivery = delivery or Delivery()
        self.on_dead: OnDead | None = None
        self._dead_key = Keys(run).stream(DEAD)
        self._consumer = consumer
        self._held: set[str] = set()
        self._next_reclaim = 0.0

    async def publish(self, *messages: M) -> None:
        """Append messages in order, all or none."""
        async with self.redis.pipeline(transaction=True) as pipe:
            for message in messages:
                pipe.xadd(self.key, self.fields(message))
            await pipe.execute()

    def fields(self, message: M) -> dict[Any, Any]:
        """The entry of a message: its bytes; in the open its group id, and which evaluation it belongs to.

        What is in the open is there for entries that do not decode: their group still has to be counted.
        """
        entry: dict[str, Any] = {"m": self.codec.encode(message)}
        group_id: int | None = getattr(message, "group_id", None)
        if group_id is not None:
            entry["g"] = group_id
        if getattr(message, "kind", None) == "eval":
            entry["e"] = f"{getattr(message, 'pinned_version', None) or 0}|{getattr(message, 'dataset', '')}"
        return entry

    async def read(self, after: str = "0", count: int = 100, block_s: float = 0) -> list[tuple[str, M]]:
        """Entries after an id, without a group, waiting up to `block_s` seconds; WireError on a bad entry."""
        block = int(block_s * 1000) or None
        answer = cast(list[Any], await self.redis.xread({self.key: after}, count=count, block=block))
        entries: list[tuple[bytes, dict[bytes, bytes]]] = answer[0][1] if answer else []
        return [(entry_id.decode(), self.codec.decode(fields[b"m"])) for entry_id, fields in entries]

    async def newest(self) -> tuple[str, M] | None:
        """The last entry, or None on an empty stream."""
        entries = cast(list[tuple[bytes, dict[bytes, bytes]]], await self.redis.xrevrange(self.key, count=1))
        return (entries[0][0].decode(), self.codec.decode(entries[0][1][b"m"])) if entries else None

    async def keep_newest(self, count: int) -> None:
        """Trim a stream that is read without a group."""
        assert not self.spec.group, f"{self.spec.name} is trimmed only when a durable checkpoint covers its entries"
        await self.redis.xtrim(self.key, maxlen=count, approximate=True)

    async def open(self) -> None:
        """Create the consumer group at the beginning of the stream unless it is there."""
        assert self.spec.group, f"{self.spec.name} is read without a group"
        try:
            await self.redis.xgroup_create(self.key, self.spec.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def receive(self, count: int, block_s: float) -> list["Message[M]"]:
        """Up to `count` messages: entries whose consumer fell silent first, then new ones, waiting up to `block_s`."""
        entries = await self._reclaim(count)
        if not entries:
            entries = await self._read_group(">", count, block_s)
        return await self._decode(entries)

    async def recover(self, count: int = 10_000) -> list["Message[M]"]:
        """What an earlier process of the same consumer name had received and not acknowledged, oldest first."""
        return await self._decode(await self._read_group("0", count, 0))

    async def keep_leases(self) -> None:
        """Renew the lease of every message that is being worked on, until cancelled."""
        while True:
            await asyncio.sleep(self.delivery.lease_s / 3)
            if self._held:
                try:
                    await self._claim(sorted(self._held), min_idle_ms=0, justid=True)
                except UNREACHABLE:
                    continue  # whoever reads or writes next reports that Redis is gone; this one tries again

    def settle(self, pipe: Any, entry_id: str) -> None:
        """Queue the acknowledgement of an entry on a pipeline."""
        pipe.xack(self.key, self.spec.group, entry_id)
        if self.spec.delete_on_ack:
            pipe.xdel(self.key, entry_id)

    def release(self, entry_id: str) -> None:
        """Stop renewing an entry's lease."""
        self._held.discard(entry_id)

    async def bury(self, entry_id: str, fields: dict[bytes, bytes], reason: str, deliveries: int) -> None:
        """Return the group's slot, then move the entry to the dead letters in one transaction."""
        group_id = int(fields[b"g"]) if b"g" in fields else None
        if self.on_dead is not None:
            await self.on_dead(group_id, reason)
        codec: Codec[DeadLetter] = Codec(DeadLetter)
        letter = DeadLetter(self.spec.name, fields.get(b"m", b""), reason, deliveries, time.time())
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xadd(self._dead_key, {"m": codec.encode(letter)})
            self.settle(pipe, entry_id)
            await pipe.execute()
        self.release(entry_id)

    async def _read_group(self, start: str, count: int, block_s: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
        block = int(block_s * 1000) or None
        answer = await self.redis.xreadgroup(
            self.spec.group or "", self._consumer, {self.key: start}, count=count, block=block
        )
        return cast(list[Any], answer)[0][1] if answer else []

    async def _reclaim(self, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        if time.monotonic() < self._next_reclaim:
            return []
        idle_ms = int(self.delivery.lease_s * 1000)
        pending = cast(
            list[dict[str, Any]],
            await self.redis.xpending_range(self.key, self.spec.group or "", "-", "+", count, idle=idle_ms),
        )
        if not pending:
            self._next_reclaim = time.monotonic() + self.delivery.lease_s / 3
            return []
        ids = [entry["message_id"].decode() for entry in pending if entry["message_id"].decode() not in self._held]
        entries = await self._claim(ids, idle_ms) if ids else []
        deliveries = {entry["message_id"]: int(entry["times_delivered"]) for entry in pending}
        kept: list[tuple[bytes, dict[bytes, bytes]]] = []
        for entry_id, fields in entries:
            if deliveries[entry_id] < self.delivery.max_deliveries:
                kept.append((entry_id, fields))
            else:
                reason = f"given up after {deliveries[entry_id]} deliveries without an acknowledgement"
                await self.bury(entry_id.decode(), fields, reason, deliveries[entry_id])
        return kept

    async def _claim(
        self, ids: Sequence[str], min_idle_ms: int, justid: bool = False
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        claimed = await self.redis.xclaim(
            self.key, self.spec.group or "", self._consumer, min_idle_ms, list(ids), justid=justid
        )
        return [] if justid else [(entry_id, fields) for entry_id, fields in cast(list[Any], claimed) if fields]

    async def _decode(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list["Message[M]"]:
        messages: list[Message[M]] = []
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            try:
                body = self.codec.decode(fields.get(b"m", b""))
            except WireError as error:
                await self.bury(entry_id, fields, str(error), 1)
                continue
            self._held.add(entry_id)
            messages.append(Message(self, entry_id, body, fields))
        return messages


@dataclass(frozen=True, slots=True)
class Message(Generic[M]):
    """One delivered entry. It ends by exactly one of ack, forward, dead_letter or retry_later."""

    stream: Stream[M]
    entry_id: str
    body: M
    fields: dict[bytes, bytes]

    async def ack(self) -> None:
        """Done, with nothing to publish."""
        async with self.stream.redis.pipeline(transaction=True) as pipe:
            self.stream.settle(pipe, self.entry_id)
            await pipe.execute()
        self.stream.release(self.entry_id)

    async def forward(self, target: Stream[N], *results: N) -> None:
        """Publish the results and acknowledge this message in one transaction."""
        await forward([self], target, *results)

    async def dead_letter(self, reason: str, deliveries: int = 1) -> None:
        """Give the message up; a person can look at it and send it again."""
        await self.stream.bury(self.entry_id, self.fields, reason, deliveries)

    def retry_later(self) -> None:
        """Let go of the message; it is delivered again, here or elsewhere, when its lease has run out."""
        self.stream.release(self.entry_id)


async def forward(messages: Sequence[Message[M]], target: Stream[N], *results: N) -> None:
    """Publish results and acknowledge all messages that they came from, in one transaction."""
    async with target.redis.pipeline(transaction=True) as pipe:
        for result in results:
            pipe.xadd(target.key, target.fields(result))
        for message in messages:
            message.stream.settle(pipe, message.entry_id)
        await pipe.execute()
    for message in messages:
        message.stream.release(message.entry_id)
