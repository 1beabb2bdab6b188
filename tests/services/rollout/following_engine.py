"""A sidecar's puller of versions in files, beside a server that loads what it is told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from redis.asyncio import Redis

from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_events import EngineEvents
from services.rollout.engine_update import EngineUpdate
from services.rollout.host_copy import HostCopy
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from services.rollout.take_files import TakeFiles
from shared.logs import Log
from shared.runs import HEARTBEAT_S, announce, withdraw
from shared.tasks import end
from tests.services.rollout.loading_server import LoadingServer


@dataclass
class Engine:
    """A sidecar's puller beside a server."""

    redis: Redis
    folder: Path
    name: str = "engine-a"
    run: str = "r1"
    in_place: bool = False
    server: LoadingServer = field(default_factory=LoadingServer)
    proven: int = 0

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator["Engine"]:
        calls = EngineCalls("http://engine", httpx.MockTransport(self.server.answer))
        events = EngineEvents(self.redis, self.run, self.name, Log("engine"))
        files = TakeFiles(calls, HostCopy(self.folder), self.in_place, events)
        identity = EngineIdentity(self.name, f"{self.name}-1", 1)
        puller = WeightPuller(
            self.redis, self.run, identity, EngineUpdate(calls, "retract", "cpu", files=files), Log("engine")
        )
        task = asyncio.create_task(puller.follow(self._on_proven, self._on_failed))
        await announce(self.redis, self.run, f"engine-up/{self.name}")
        alive = asyncio.create_task(self._stay_up())
        try:
            yield self
        finally:
            await end(task, alive)
            await withdraw(self.redis, self.run, f"engine-up/{self.name}")
            await calls.close()
            if not task.cancelled():
                task.result()

    async def _stay_up(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await announce(self.redis, self.run, f"engine-up/{self.name}")

    def holds(self, wanted: dict[str, torch.Tensor]) -> bool:
        found = self.server.weights
        return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)

    def _on_proven(self) -> None:
        self.proven += 1

    async def _on_failed(self) -> None:
        self.proven = 0
