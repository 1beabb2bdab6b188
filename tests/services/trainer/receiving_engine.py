"""An engine as the trainer sees it: answers announcements in Redis and receives the broadcasts, without SGLang."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
from redis.asyncio import Redis
from torch import distributed

from services.trainer.weight_buckets import WeightBuckets
from services.trainer.weight_hashes import checksum
from shared.enrolment import Part, Word, listen, read_part, write_answer
from shared.messages import WeightVersion
from shared.runs import announce, withdraw
from shared.streams import Stream
from shared.topology import WEIGHTS, Keys

c10d: Any = distributed


@dataclass
class ReceivingEngine:
    redis: Redis
    run: str
    name: str
    behaviour: str = "well"
    """well; mute: never answers; refuses: says so after `go`, once, and never: every time; freezes: joins, and is never
    ready; stalls: is ready, and never receives; dies: is ready, then goes; drains: takes a second until it is ready."""
    incarnation: str = "a"
    group: str = ""
    received: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    groups_joined: list[str] = field(default_factory=list)
    at_work: tuple[float, float] = (0, 0)
    """From when to when it was paused last, in seconds since the epoch."""
    words: list[Word] = field(default_factory=list)
    """What the trainer told it when it was ready."""
    connection: Any = None
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    """It drains until this is set, as it is at first."""

    def __post_init__(self) -> None:
        self.is_open.set()

    async def live(self) -> None:
        stream, last = Stream[WeightVersion](self.redis, self.run, WEIGHTS), "0"
        await announce(self.redis, self.run, f"engine-up/{self.name}")
        try:
            while True:
                entries = await stream.read(last, block_s=0.05)
                if entries:
                    last, announced = entries[-1]
                    if self.behaviour != "mute":
                        await self._take_part(announced)
        finally:
            await withdraw(self.redis, self.run, f"engine-up/{self.name}")

    async def _take_part(self, announced: WeightVersion) -> None:
        part = Part("enrolled", announced.rendezvous.group_name, self.incarnation, 1, self.group)
        held = self.received.get(announced.version)
        if held is not None and checksum(held, "cpu") == announced.checksum:
            return await self._write(announced, replace(part, state="done", checksum=announced.checksum))
        await self._write(announced, part)
        go = await self._wait_for_go(announced)
        if go is None:
            return None
        if self.behaviour in ("refuses", "never"):
            self.connection, self.group = None, ""
            self.behaviour = "well" if self.behaviour == "refuses" else "never"
            return await self._write(announced, replace(part, state="failed", reason="400: no"))
        if go.group != self.group:
            self.connection = await asyncio.to_thread(self._join, announced, go)
            self.group = go.group
            self.groups_joined.append(go.group)
        await self._write(announced, await self._receive_when_cleared(announced, part))

    async def _receive_when_cleared(self, announced: WeightVersion, part: Part) -> Part:
        """From its place in the group to the end of its part."""
        if self.behaviour == "freezes":
            await asyncio.sleep(3600)
        if self.behaviour == "drains" or not self.is_open.is_set():
            await self._write(announced, replace(part, state="draining", group=self.group))
            await asyncio.sleep(1 if self.behaviour == "drains" else 0)
            await self.is_open.wait()
        paused = time.time()
        await self._write(announced, replace(part, state="ready", group=self.group))
        if not await self._is_cleared(announced):
            self.connection, self.group = None, ""
            return replace(part, state="failed", reason="not cleared")
        if self.behaviour == "stalls":
            await asyncio.sleep(3600)
        if self.behaviour == "dies":
            self.connection.abort()
            raise asyncio.CancelledError
        buckets = WeightBuckets(announced.buckets, torch.device("cpu"))
        try:
            await asyncio.to_thread(self._receive, buckets)
        except RuntimeError as error:
            self.group = ""
            return replace(part, state="failed", reason=f"broken: {error}")
        self.received[announced.version] = buckets.tensors
        self.at_work = (paused, time.time())
        return replace(part, state="done", checksum=checksum(buckets.tensors, "cpu"))

    async def _wait_for_go(self, announced: WeightVersion) -> Part | None:
        stream = Stream[WeightVersion](self.redis, self.run, WEIGHTS)
        while (newest := await stream.newest()) is None or newest[1] == announced:
            part = await read_part(self.redis, Keys(self.run), announced.version, self.name)
            if part is not None and part.state == "go":
                return part
            await asyncio.sleep(0.002)
        return None

    async def _is_cleared(self, announced: WeightVersion) -> bool:
        while True:
            word = await listen(self.redis, Keys(self.run), announced.version, self.name)
            if word is not None and word.announcement == announced.rendezvous.group_name:
                if word not in self.words:
                    self.words.append(word)
                if word.word != "wait":
                    return word.word == "send"
            await asyncio.sleep(0.002)

    def _join(self, announced: WeightVersion, go: Part) -> Any:
        meeting = announced.rendezvous
        store = c10d.TCPStore(meeting.host, meeting.port, go.world_size, False, timedelta(seconds=10))
        for prefix in (go.group, f"{go.group}/", "cpu/"):
            store = c10d.PrefixStore(prefix, store)
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=20)
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        return c10d.ProcessGroupGloo(store, go.first_rank, go.world_size, options)

    def _receive(self, buckets: WeightBuckets) -> None:
        for flat in buckets.flat:
            self.connection.broadcast(flat, 0).wait()

    async def _write(self, announced: WeightVersion, part: Part) -> None:
        await write_answer(self.redis, Keys(self.run), announced.version, self.name, part)
