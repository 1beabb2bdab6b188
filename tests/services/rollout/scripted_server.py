"""The puller between a real Redis and an SGLang server whose answers the test writes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from redis.asyncio import Redis

from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_update import EngineUpdate
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from shared.enrolment import Part, Word, read_part, say, write_parts
from shared.logs import Log
from shared.messages import Rendezvous, TensorSpec, WeightVersion
from shared.streams import Stream
from shared.tasks import end
from shared.topology import WEIGHTS, Keys
from tests.conftest import until

RUN, NAME = "r1", "engine-a"
KEYS = Keys(RUN)
HASHES = {"model.norm.weight": "aa", "lm_head.weight": "bb"}
UPDATE = [
    "/init_weights_update_group",
    "/pause_generation",
    "/begin_weight_update",
    "/update_weights_from_distributed",
    "/update_weights_from_distributed",
    "/end_weight_update",
    "/flush_cache",
    "/weights_checker",
    "/continue_generation",
]


@dataclass
class Server:
    """Answers as SGLang does; `refuse` maps a path to how many times it answers 400."""

    refuse: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    hang: set[str] = field(default_factory=set)
    """Silent once."""
    hashes: dict[str, str] = field(default_factory=lambda: dict(HASHES))
    calls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    deadlines: dict[str, float] = field(default_factory=dict)
    """Seconds that the last call of each path was given."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/health" and path not in self.silent:
            return httpx.Response(200)
        self.calls.append(path)
        self.bodies.append(json.loads(request.content or b"{}"))
        self.deadlines[path] = request.extensions["timeout"]["read"]
        if path in self.hang:
            self.hang.discard(path)
            raise httpx.ReadTimeout("nothing came")
        if path in self.silent:
            raise httpx.ReadTimeout("nothing came")
        if self.refuse.get(path, 0) > 0:
            self.refuse[path] -= 1
            return httpx.Response(400, json={"success": False, "message": "no"})
        return httpx.Response(200, json={"success": True, "ranks": [{"checksums": self.hashes}]})


@dataclass
class Sidecar:
    redis: Redis
    server: Server
    update: EngineUpdate
    proven: int = 0
    failures: list[Part | None] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None
    """Follows the announcements."""

    def on_proven(self) -> None:
        self.proven += 1

    async def on_failed(self) -> None:
        self.failures.append(await read_part(self.redis, KEYS, 1, NAME))

    async def part(self, version: int) -> Part | None:
        return await read_part(self.redis, KEYS, version, NAME)

    async def announce(
        self, version: int, group: str, hashes: dict[str, str] | None = None, checksum: str = ""
    ) -> None:
        now = time.time()
        buckets = [[TensorSpec("model.norm.weight", "float32", [4])], [TensorSpec("lm_head.weight", "float32", [4, 4])]]
        meeting = Rendezvous("127.0.0.1", 1, group, "gloo", now + 5, now + 10)
        announced = WeightVersion(version, version, buckets, checksum or f"sum-{version}", hashes or HASHES, meeting)
        await Stream[WeightVersion](self.redis, RUN, WEIGHTS).publish(announced)

    async def go(self, version: int, announcement: str, group: str = "", incarnation: str = "life-1") -> None:
        """Tell the engine to begin, and to take the weights when it is ready."""
        await say(self.redis, KEYS, version, [NAME], Word(announcement, "send"))
        await self.begin(version, announcement, group, incarnation)

    async def begin(self, version: int, announcement: str, group: str = "", incarnation: str = "life-1") -> None:
        async def enrolled() -> bool:
            part = await self.part(version)
            return part is not None and part.state == "enrolled" and part.announcement == announcement

        await until(enrolled, 5)
        go = Part("go", announcement, incarnation, 1, group or announcement, 1, 2)
        await write_parts(self.redis, KEYS, version, {NAME: go})

    async def reaches(self, version: int, state: str) -> Part:
        async def reached() -> bool:
            part = await self.part(version)
            return part is not None and part.state == state

        await until(reached, 5)
        part = await self.part(version)
        assert part is not None
        return part


Start = Callable[..., contextlib.AbstractAsyncContextManager[Sidecar]]


@contextlib.asynccontextmanager
async def following(
    redis: Redis, server: Server | None = None, mode: str = "retract", shares_prefixes: bool = True
) -> AsyncGenerator[Sidecar]:
    """A sidecar that follows the announcements of the run."""
    server = server or Server()
    calls = EngineCalls("http://engine", httpx.MockTransport(server.answer))
    update = EngineUpdate(calls, mode, "cpu", shares_prefixes)
    puller = WeightPuller(redis, RUN, EngineIdentity(NAME, "life-1", 1), update, Log("engine"))
    sidecar = Sidecar(redis, server, update)
    sidecar.task = asyncio.create_task(puller.follow(sidecar.on_proven, sidecar.on_failed))
    try:
        yield sidecar
    finally:
        await end(sidecar.task)
        await calls.close()


async def true(value: bool) -> bool:
    return value


async def answered(sidecar: Sidecar, announcement: str) -> bool:
    part = await sidecar.part(1)
    return part is not None and part.announcement == announcement
