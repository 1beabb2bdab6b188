"""Stream[M]: publish, consume in a group, renew leases, acknowledge, reclaim, dead-letter."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared import stream_lua
from shared.errors import WireError
from shared.messages import MAX_ENTRY_BYTES, Codec, DeadLetter
from shared.pending import LET_GO, Pending, choose
from shared.redis_connection import UNREACHABLE
from shared.topology import DEAD, Keys, StreamSpec

M = TypeVar("M")
Entry = tuple[bytes, dict[bytes, bytes]]
OnDead = Callable[[int | None, str], Awaitable[None]]
"""Called with (group id if known, reason) before a dead entry is acknowledged; it may be called again."""
RECLAIM_PAGE = 100
LETTER_BYTES = MAX_ENTRY_BYTES - 2**16
"""The largest entry that a dead letter keeps."""


def entry_of(codec: Codec[M], message: M) -> dict[str, Any]:
    """The entry of a message: its bytes; in the open its group id, and which evaluation it belongs to.

    What is in the open is there for entries that do not decode: their group still has to be counted.
    """
    entry: dict[str, Any] = {"m": codec.encode(message)}
    group_id: int | None = getattr(message, "group_id", None)
    if group_id is not None:
        entry["g"] = group_id
    if getattr(message, "kind", None) == "eval":
        entry["e"] = f"{getattr(message, 'pinned_version', None) or 0}|{getattr(message, 'dataset', '')}"
    return entry


def evaluation_of(fields: Mapping[bytes, bytes]) -> tuple[int, str] | None:
    """(pinned version, dataset) of an entry that belongs to an evaluation, also if the entry does not decode."""
    version, is_eval, dataset = fields.get(b"e", b"").decode(errors="replace").partition("|")
    return (int(version), dataset) if is_eval and version.isdecimal() else None


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
        self.spec, self.keys = spec, Keys(run)
        self.key = self.keys.stream(spec)
        self.codec: Codec[M] = Codec(spec.message)
        self.redis = redis
        self.delivery = delivery or Delivery()
        self.on_dead: OnDead | None = None
        self._dead_key, self._emitted_key = self.keys.stream(DEAD), self.keys.emitted
        self._consumer = consumer
        self._held: set[str] = set()
        self._suspect = ""
        self._idle = asyncio.Event()
        self._idle.set()
        self._let_go: set[str] = set()
        self._next_reclaim = 0.0
        self._renew_script = redis.register_script(stream_lua.RENEW)
        self._pending_script = redis.register_script(stream_lua.PENDING)
        self._bury_script = redis.register_script(stream_lua.BURY)

    async def publish(self, *messages: M) -> None:
        """Append messages in order, all or none."""
        async with self.redis.pipeline(transaction=True) as pipe:
            for message in messages:
                entry: dict[Any, Any] = entry_of(self.codec, message)
                pipe.xadd(self.key, entry, maxlen=self.spec.keep_newest)
            await pipe.execute()

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

    async def open(self) -> None:
        """Create the consumer group at the beginning of the stream unless it is there."""
        assert self.spec.group, f"{self.spec.name} is read without a group"
        try:
            await self.redis.xgroup_create(self.key, self.spec.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def receive(self, count: int, block_s: float) -> list["Message[M]"]:
        """Up to `count` messages: entries whose consumer fell silent first, then new ones, waiting up to `block_s`.

        An entry that two workers fell silent with is a suspect: it is received alone, by a consumer that holds nothing
        else, and nothing else is received until it is done. While suspects wait, nothing new is received.
        """
        await self._tell_let_go()
        if self._suspect:
            await self._wait_until_idle(block_s)
            return []
        claimed = await self._reclaim(count)
        if claimed is None:
            await self._wait_until_idle(block_s)
            return []
        return claimed or await self._decode(await self._read_group(">", count, block_s), {})

    async def recover(self, count: int = 10_000) -> list["Message[M]"]:
        """What an earlier process of the same consumer name had received and not acknowledged, oldest first."""
        entries = await self._read_group("0", count, 0)
        pending = await self._pending(count, consumername=self._consumer) if entries else []
        return await self._decode(entries, {entry.entry_id: entry.deliveries for entry in pending})

    async def still_pending(self, messages: Sequence["Message[M]"]) -> list[bool]:
        """For each message, whether its entry is still to be acknowledged as far as Redis knows.

        It is not if another worker settled it, or if Redis came back without the moment in which it was delivered; what
        Redis does not know any more may have been released anew, as another group of the same id.
        """
        args = [self.spec.group or "", *(message.entry_id for message in messages)]
        return [bool(found) for found in await self._pending_script(keys=[self.key], args=args)]

    async def keep_leases(self) -> None:
        """Renew the lease of every message that is being worked on, until cancelled."""
        while True:
            await asyncio.sleep(self.delivery.lease_s / 3)
            try:
                await self._tell_let_go()
                await self._renew(self._held, self._consumer)
            except UNREACHABLE:
                continue  # whoever reads or writes next reports that Redis is gone; this one tries again

    async def acknowledge(self, messages: Sequence["Message[M]"]) -> None:
        """All of them are done, with nothing to publish; in one transaction."""
        ids: list[Any] = [message.entry_id for message in messages]
        if not ids:
            return
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(self.key, self.spec.group or "", *ids)
            if self.spec.delete_on_ack:
                pipe.xdel(self.key, *ids)
            await pipe.execute()
        for entry_id in ids:
            self.release(entry_id)

    def release(self, entry_id: str) -> None:
        """Stop renewing an entry's lease."""
        self._held.discard(entry_id)
        if entry_id == self._suspect:
            self._suspect = ""
        if not self._held:
            self._idle.set()

    def let_go(self, entry_id: str) -> None:
        """Stop renewing an entry's lease, and let the others know that its worker is alive and did not die of it."""
        self.release(entry_id)
        self._let_go.add(entry_id)

    async def leave(self) -> None:
        """Tell the others at once what was let go of, for a consumer that ends."""
        await self._tell_let_go()

    async def bury(self, entry_id: str, fields: dict[bytes, bytes], reason: str, deliveries: int) -> None:
        """Return the group's slot, then move the entry to the dead letters, once, in one transaction."""
        if not await self._is_pending(entry_id):
            self.release(entry_id)
            return  # another consumer settled it meanwhile
        letter = self._letter(fields, reason, deliveries)
        group_id = "" if letter.group_id is None else letter.group_id
        names = [self.key, self._dead_key, self._emitted_key]
        data = Codec[DeadLetter](DeadLetter).encode(letter)
        for may_be_redriven in (True, False):
            await self.give_up_group(fields, reason)
            check = int(may_be_redriven and group_id != "" and self.gives_up_groups)
            args = [self.spec.group or "", entry_id, data, int(self.spec.delete_on_ack), group_id, check]
            if int(await self._bury_script(keys=names, args=args)) >= 0:
                break  # else a person sent the group again after its slot was returned, and it is returned once more
        self.release(entry_id)

    @property
    def gives_up_groups(self) -> bool:
        """True if `give_up_group` settles the group of an entry that has one."""
        return self.on_dead is not None

    async def give_up_group(self, fields: dict[bytes, bytes], reason: str) -> None:
        """What has to happen to the group of an entry before the entry goes to the dead letters."""
        if self.on_dead is not None:
            await self.on_dead(int(fields[b"g"]) if b"g" in fields else None, reason)

    def _letter(self, fields: dict[bytes, bytes], reason: str, deliveries: int) -> DeadLetter:
        entry, group_id = fields.get(b"m", b""), int(fields[b"g"]) if b"g" in fields else None
        if len(entry) > LETTER_BYTES:
            reason, entry = f"{reason}; its {len(entry)} bytes were not kept", b""
        is_evaluation = evaluation_of(fields) is not None
        return DeadLetter(self.spec.name, entry, reason, deliveries, time.time(), group_id, is_evaluation)

    async def _read_group(self, start: str, count: int, block_s: float) -> list[Entry]:
        block = int(block_s * 1000) or None
        answer = await self.redis.xreadgroup(
            self.spec.group or "", self._consumer, {self.key: start}, count=count, block=block
        )
        return cast(list[Any], answer)[0][1] if answer else []

    async def _is_pending(self, entry_id: str) -> bool:
        return bool(await self.redis.xpending_range(self.key, self.spec.group or "", entry_id, entry_id, 1))

    async def _pending(self, count: int, **which: Any) -> list[Pending]:
        entries = await self.redis.xpending_range(self.key, self.spec.group or "", "-", "+", count, **which)
        return [
            Pending(entry["message_id"].decode(), entry["consumer"].decode(), int(entry["times_delivered"]))
            for entry in cast(list[dict[str, Any]], entries)
        ]

    async def _reclaim(self, count: int) -> list["Message[M]"] | None:
        """Messages of silent consumers; None if suspects wait until this consumer holds nothing."""
        if time.monotonic() < self._next_reclaim:
            return []
        page = max(count, RECLAIM_PAGE) + len(self._held)
        pending = await self._pending(page, idle=int(self.delivery.lease_s * 1000))
        silent = [entry for entry in pending if entry.entry_id not in self._held]
        if not silent:
            self._next_reclaim = time.monotonic() + self.delivery.lease_s / 3
            return []
        choice = choose(silent, self.delivery.max_deliveries)
        await self._give_up(choice.give_up)
        if choice.suspects and self._held:
            return None
        for suspect in choice.suspects:
            if taken := await self._take_over([suspect]):
                self._suspect = taken[0].entry_id
                return taken
        return await self._take_over(choice.others[:count])

    async def _give_up(self, entries: Sequence[Pending]) -> None:
        deliveries = {entry.entry_id: entry.deliveries for entry in entries}
        for raw_id, fields in await self._claim(list(deliveries)):
            count = deliveries[raw_id.decode()]
            reason = f"given up after {count} deliveries without an acknowledgement"
            await self.bury(raw_id.decode(), fields, reason, count)

    async def _take_over(self, entries: Sequence[Pending]) -> list["Message[M]"]:
        claimed = await self._claim([entry.entry_id for entry in entries])
        return await self._decode(claimed, {entry.entry_id: entry.deliveries + 1 for entry in entries})

    async def _claim(self, ids: list[str]) -> list[Entry]:
        if not ids:
            return []
        idle_ms = int(self.delivery.lease_s * 1000)
        claimed = await self.redis.xclaim(self.key, self.spec.group or "", self._consumer, idle_ms, list[Any](ids))
        return [(entry_id, fields) for entry_id, fields in cast(list[Any], claimed) if fields]

    async def _renew(self, ids: set[str], owner: str) -> None:
        """Renew the leases of those entries that are still this consumer's, in the name of `owner`."""
        if ids:
            args = [self.spec.group or "", self._consumer, owner, *sorted(ids)]
            await self._renew_script(keys=[self.key], args=args)

    async def _tell_let_go(self) -> None:
        ids = set(self._let_go)
        await self._renew(ids, LET_GO)
        self._let_go -= ids

    async def _wait_until_idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _decode(self, entries: list[Entry], deliveries: dict[str, int]) -> list["Message[M]"]:
        messages: list[Message[M]] = []
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            count = deliveries.get(entry_id, 1)
            try:
                body = self.codec.decode(fields.get(b"m", b""))
            except WireError as error:
                await self.bury(entry_id, fields, str(error), count)
                continue
            self._held.add(entry_id)
            self._idle.clear()
            messages.append(Message(self, entry_id, body, fields, count))
        return messages


@dataclass(frozen=True, slots=True)
class Message(Generic[M]):
    """One delivered entry. It ends by exactly one of ack, dead_letter, retry_later, or a step of the ledger."""

    stream: Stream[M]
    entry_id: str
    body: M
    fields: dict[bytes, bytes]
    deliveries: int = 1
    """How often the entry was delivered, this time included."""

    async def ack(self) -> None:
        """Done, with nothing to publish."""
        await self.stream.acknowledge([self])

    async def dead_letter(self, reason: str, deliveries: int | None = None) -> None:
        """Give the message up; a person can look at it and send it again."""
        await self.stream.bury(self.entry_id, self.fields, reason, deliveries or self.deliveries)

    def retry_later(self) -> None:
        """Let go of the message; it is delivered again, here or elsewhere, when its lease has run out."""
        self.stream.let_go(self.entry_id)
