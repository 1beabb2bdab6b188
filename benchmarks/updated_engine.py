"""A model's folder -> a real SGLang that follows versions by the sidecar's own code, and requests that keep it busy."""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from redis.asyncio import Redis
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.free_ports import free_port
from benchmarks.request_load import Arrivals, LoadShape, keep_busy
from benchmarks.weight_versions import Named, Weights
from services.rollout.engine_arguments import plan_engine
from services.rollout.engine_update import EngineUpdate
from services.rollout.launch_engine import EngineProcess
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from services.trainer.publish_weights import WeightPublisher
from services.trainer.stage_weights import Staged
from shared.enrolment import read_part
from shared.logs import Log
from shared.run_settings import EngineSettings, ModelSettings, WeightSettings
from shared.runs import HEARTBEAT_S, announce, withdraw
from shared.tasks import end
from shared.topology import Keys

RUN, NAME = "pause", "engine"
HEALTHY_S, ENDED_S, LOOK_S = 400.0, 120.0, 0.05
WARM_S, GAP_S = 1.0, 3.0
"""Seconds from the first token of every request to the first version, and between two."""
HALTED = frozenset(("pause", "ready", "load", "flush", "prove", "resume"))
"""Phases in which the engine is paused; updates in place are proven after it has resumed."""
PHASES = (
    "stage",
    "hash",
    "enrol",
    "connect",
    "broadcast",
    "lend",
    "pause",
    "ready",
    "load",
    "flush",
    "prove",
    "resume",
)


class UpdatedEngine:
    """The trainer's side of an engine: versions, one after the other."""

    def __init__(self, redis: Redis, publisher: WeightPublisher, weights: Weights, mode: str) -> None:
        self._redis, self._publisher, self._weights, self._version = redis, publisher, weights, -1
        self._halted = HALTED - {"prove"} if mode == "in_place" else HALTED
        self.unverified = 0
        """Most parameters of a version that could not be compared."""

    async def next(self) -> tuple[Staged, dict[str, float]]:
        """Publish the next version, which the engine must prove; returns its snapshot and its seconds by phase."""
        self._version += 1
        self._weights.change(self._version)
        started = time.monotonic()
        staged = await asyncio.to_thread(self._publisher.stage, self._version, self._version, self._weights.published())
        stage_s = time.monotonic() - started
        report = await self._publisher.publish(staged)
        assert report is not None, "nothing replaces it"
        assert (report.done, report.failed) == ((NAME,), {}), report
        part = await read_part(self._redis, Keys(RUN), self._version, NAME)
        assert part is not None, "who is done has said so"
        self.unverified = max(self.unverified, abs(part.unverified))
        halted = sum(value for phase, value in part.seconds.items() if phase in self._halted)
        seconds = {**report.seconds, **part.seconds, "stage": stage_s, "halted": halted}
        return staged, {phase: seconds[phase] for phase in (*PHASES, "halted") if phase in seconds}


@dataclass
class Load:
    """What requests saw, and when versions came."""

    windows: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    arrivals: Arrivals = field(default_factory=Arrivals)

    def pauses(self) -> dict[str, float]:
        """Of requests in flight while a version came."""
        return spread([gap for begin, finish in self.windows for gap in self.arrivals.gaps(begin, finish)])

    def usual(self) -> dict[str, float]:
        """Between two versions."""
        quiet = [(before[1] + 2 * GAP_S / 3, after[0]) for before, after in pairwise(self.windows)]
        return spread([gap for begin, finish in quiet for gap in self.arrivals.gaps(begin, finish)])


def spread(values: list[float]) -> dict[str, float]:
    """p50, p99 and max; nothing of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))], "max": ordered[-1]}


@contextlib.asynccontextmanager
async def running_engine(
    redis: Redis, folder: Path, device: torch.device, options: argparse.Namespace, name: str = NAME
) -> AsyncGenerator[EngineProcess]:
    """A healthy engine that follows the versions of RUN."""
    given = {"base_gpu_id": device.index, **options.server_args} if device.type == "cuda" else options.server_args
    settings = EngineSettings(device=device.type, update_mode=options.mode, server_args={"stream_interval": 1, **given})
    model = ModelSettings(path=str(folder), dtype="bfloat16" if device.type == "cuda" else "float32")
    weights = WeightSettings(quantization=options.quantization)
    plan = plan_engine(model, settings, "127.0.0.1", free_port(), 0, weights)
    log = options.engine_log or Path(tempfile.mkdtemp()) / f"{name}.log"
    process = EngineProcess(plan, log)
    try:
        await process.wait_healthy(HEALTHY_S)
        update = EngineUpdate(process.calls, options.mode, device.type, plan.shares_prefixes)
        puller = WeightPuller(redis, RUN, EngineIdentity(name, process.incarnation, plan.ranks), update, Log("engine"))
        tasks = [
            asyncio.create_task(_stay_up(redis, name, process)),
            asyncio.create_task(puller.follow(_nothing, _failed)),
        ]
        yield process
        await end(*tasks)
    finally:
        await asyncio.to_thread(process.stop)
        await process.calls.close()


@contextlib.asynccontextmanager
async def busy(address: str, folder: Path, options: argparse.Namespace, load: Load) -> AsyncGenerator[None]:
    """Requests in flight, until all of them have ended after the body; `load` then has their arrivals."""
    vocabulary = int(json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"])
    shape = LoadShape(options.streams, options.others, 128, options.new_tokens, vocabulary)
    context = multiprocessing.get_context("spawn")
    orders, theirs = context.Pipe()
    process = context.Process(target=keep_busy, args=(theirs, address, shape), daemon=True)
    process.start()
    try:
        assert await asyncio.to_thread(orders.poll, ENDED_S), "no tokens come"
        orders.recv()
        await asyncio.sleep(WARM_S)
        yield
        orders.send("end")
        assert await asyncio.to_thread(orders.poll, ENDED_S), "the requests do not end"
        load.arrivals = orders.recv()
    finally:
        process.kill()


def random_model(folder: Path, device: torch.device) -> Named:
    """Parameters of that architecture, by their names in a checkpoint."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def written_model(folder: Path, named: Named, to: Path) -> Path:
    """The model with its weights in a file, from which a sidecar sees what of them can be quantised."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(dict(named), to / "model.safetensors", {"format": "pt"})
    return to


async def _stay_up(redis: Redis, name: str, process: EngineProcess) -> None:
    """Be there for the trainer while the engine lives, as its sidecar is."""
    announced = 0.0
    while process.alive:
        if time.monotonic() - announced > HEARTBEAT_S:
            await announce(redis, RUN, f"engine-up/{name}")
            announced = time.monotonic()
        await asyncio.sleep(LOOK_S)
    await withdraw(redis, RUN, f"engine-up/{name}")


async def _failed() -> None:
    """The report says why."""


def _nothing() -> None:
    """There is no router."""
