"""A model's folder -> a real SGLang beside the sidecar's own code, which has its device's memory in turns."""

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from benchmarks.updated_engine import HEALTHY_S, NAME, RUN
from services.rollout.engine_arguments import EnginePlan, plan_engine
from services.rollout.engine_life import Life
from services.rollout.engine_memory import TakeTurns
from services.rollout.engine_update import EngineUpdate
from services.rollout.launch_engine import EngineProcess
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from shared.logs import Log
from shared.run_settings import EngineSettings, ModelSettings, WeightSettings
from shared.runs import HEARTBEAT_S, announce
from shared.tasks import end


class OneProcess:
    """See Lives: one process, and an error where a second one would be needed."""

    def __init__(self, plan: EnginePlan, log_file: Path, command: Sequence[str]) -> None:
        """`command`: see EngineProcess."""
        self.url, self._plan, self._log_file, self._command = plan.url, plan, log_file, command
        self._process: EngineProcess | None = None

    async def start(self) -> Life:
        """See Lives."""
        assert self._process is None, f"the engine was ended: see {self._log_file}"
        self._process = EngineProcess(self._plan, self._log_file, self._command)
        await self._process.wait_healthy(HEALTHY_S)
        return self._process

    async def stop(self, grace_s: float = 0) -> None:
        """See Lives."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, grace_s)

    async def release(self) -> None:
        """See Lives."""
        await self.stop()

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """See Lives."""
        raise AssertionError(reason)


@dataclass
class EngineInTurns:
    """The engine, and how its last turns went."""

    url: str
    up: asyncio.Event
    update: EngineUpdate | None = None

    def seconds(self) -> dict[str, float]:
        """Of the phases of what it did last: gave its memory, or took a version."""
        assert self.update is not None, "it is up"
        return dict(self.update.seconds)


@contextlib.asynccontextmanager
async def engine_in_turns(
    redis: Redis, folder: Path, device: torch.device, options: argparse.Namespace
) -> AsyncGenerator[EngineInTurns]:
    """It is launched when it is the engines' turn."""
    settings = EngineSettings(
        device=device.type, update_mode=options.mode, server_args={"stream_interval": 1, **options.server_args}
    )
    model = ModelSettings(path=str(folder), dtype="bfloat16")
    weights = WeightSettings(transport="ipc", memory="turns")
    plan = plan_engine(model, settings, "127.0.0.1", free_port(), 0, weights)
    log_file = options.engine_log or Path(tempfile.mkdtemp()) / "engine.log"
    process = OneProcess(plan, log_file, options.engine_command)
    memory, engine = TakeTurns(redis, RUN, NAME, process, Log("engine")), EngineInTurns(plan.url, asyncio.Event())
    tasks = [asyncio.create_task(memory.follow()), asyncio.create_task(_live(redis, memory, engine, options.mode))]
    try:
        yield engine
    finally:
        await end(*tasks)
        await process.stop()


async def _live(redis: Redis, memory: TakeTurns, engine: EngineInTurns, mode: str) -> None:
    life = await memory.start()
    engine.update = EngineUpdate(life.calls, mode, life.device, life.shares_prefixes)
    memory.serves(engine.update)
    engine.up.set()
    puller = WeightPuller(redis, RUN, EngineIdentity(NAME, life.incarnation, life.ranks), engine.update, Log("engine"))
    await asyncio.gather(_stay_up(redis), puller.follow(_nothing, _failed), life.watch())


async def _stay_up(redis: Redis) -> None:
    while True:
        await announce(redis, RUN, f"engine-up/{NAME}")
        await asyncio.sleep(HEARTBEAT_S)


async def _failed() -> None:
    """The report says why."""


def _nothing() -> None:
    """There is no router."""
