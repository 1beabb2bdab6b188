"""A model that is trained and served on one device in turns -> seconds of each phase, and whose memory is free when.

`python -m benchmarks.memory_turns`: the trainer's own backend and publisher, a real SGLang beside the sidecar's own
code, and requests in flight all the time, which wait while it is the trainer's turn. The model has random weights.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from redis.asyncio import Redis

from benchmarks.engine_in_turns import EngineInTurns, engine_in_turns
from benchmarks.own_redis import own_redis_url
from benchmarks.trainer_samples import GRPO_LOSS, random_samples
from benchmarks.trainer_shapes import SHAPES, Shape, lengths_of, write_model
from benchmarks.updated_engine import NAME, RUN, Load, busy
from benchmarks.weight_versions import Samples
from services.trainer.ask_engines import AskEngines, Patience
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.compute_thread import ComputeThread
from services.trainer.host_memory import HostMemory
from services.trainer.lend_version import Lender
from services.trainer.load_model import load_policy
from services.trainer.memory_turns import MemoryTurns
from services.trainer.packing import MicroBatch, pack, with_columns
from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.step_ledger import StepLedger
from shared.await_redis import AwaitRedis
from shared.enrolment import read_part
from shared.logs import Log
from shared.redis_connection import connect
from shared.topology import Keys

PATIENCE = Patience(give_s=120, present_s=30, engines=1)
DEADLINES = Deadlines(enrol_s=30, update_s=120, first_engine_s=600)
SERVE_S = 3.0
"""Seconds that the engine generates between two turns of the trainer."""
LEARNING_RATE = 1e-6


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the turns after the first one."""

    shape: str
    device: str
    mode: str
    parameters: int
    turns: int
    trainer_bytes: int
    """Weights and optimizer: what leaves the device."""
    seconds: dict[str, float]
    """ask: until the engine had released its memory, of which pause and release are parts; come_back: of the trainer's
    models; train; stage, hash, leave: of the trainer; enrol, resume_memory, load, flush, prove, resume: of the engine;
    total: from the end of the training until the engine serves again."""
    first_leave_s: float
    """The first time, with the allocation of pinned memory."""
    free_bytes: dict[str, int]
    """alone: when the trainer's models have left it, before the engine is launched; engine: while that generates;
    released: when it has given its memory away; trainer: when that has its models back; training: after a step, with
    what torch keeps for the next one."""
    unverified: int
    pauses: dict[str, float]
    """p50, p99 and max, over requests in flight and turns, of the longest time between two tokens."""
    finished: int
    continued: int
    lost: list[str]


class TimedModels(HostMemory):
    """Notes how their return goes, and what is free when they have left."""

    free_before, free_after, back_s = 0, 0, 0.0

    def leave(self) -> None:
        """See HostMemory."""
        super().leave()
        self.free_after = free_bytes(self._device)

    def come_back(self) -> None:
        """See HostMemory."""
        self.free_before, started = free_bytes(self._device), time.monotonic()
        super().come_back()
        self.back_s = time.monotonic() - started


@dataclass
class Bench:
    """A trainer and an engine of one device."""

    backend: TorchBackend
    batches: list[MicroBatch]
    device: torch.device
    redis: Redis
    publisher: WeightPublisher
    models: "TimedModels"
    memory: MemoryTurns
    compute: ComputeThread
    free: dict[str, int] = field(default_factory=dict[str, int])
    version: int = -1
    unverified: int = 0

    async def take(self, engine: EngineInTurns) -> dict[str, float]:
        """The trainer's turn begins."""
        self.free["engine"] = free_bytes(self.device)
        started = time.monotonic()
        await self.publisher.stand_back()
        await self.memory.take()
        ask_s = time.monotonic() - started - self.models.back_s
        self.free |= {"released": self.models.free_before, "trainer": free_bytes(self.device)}
        gave = {phase: seconds for phase, seconds in engine.seconds().items() if phase != "flush"}
        return {**gave, "ask": ask_s, "come_back": self.models.back_s}

    async def train(self) -> dict[str, float]:
        started = time.monotonic()
        await self.compute.run(self.backend.train_step, self.batches, GRPO_LOSS, LEARNING_RATE, self.version)
        self.free["training"] = free_bytes(self.device)
        return {"train": time.monotonic() - started}

    async def publish(self) -> dict[str, float]:
        """The next version, with which the trainer's turn ends."""
        self.version += 1
        started = time.monotonic()
        tensors = self.backend.named_tensors
        staged = await self.compute.run(lambda: self.publisher.stage(self.version, self.version, tensors()))
        stage_s = time.monotonic() - started
        report = await self.publisher.publish(staged, self.memory.give)
        assert report is not None, "nothing replaces it"
        assert (report.done, report.failed) == ((NAME,), {}), report
        part = await read_part(self.redis, Keys(RUN), self.version, NAME)
        assert part is not None, "who is done has said so"
        self.unverified = max(self.unverified, abs(part.unverified))
        phases = {**report.seconds, **part.seconds, "stage": stage_s, "leave": report.seconds["make_room"]}
        ours = {name: seconds for name, seconds in phases.items() if name not in ("make_room", "connect")}
        return {**ours, "total": time.monotonic() - started}


async def measure(folder: Path, options: argparse.Namespace) -> Row:
    """Turns, one after the other, under load."""
    shape, device = SHAPES[options.shape], torch.device(options.device)
    compute, load, samples = ComputeThread(1), Load(), Samples()
    async with own_redis_url() as url:
        redis = connect(url)
        async with engine_in_turns(redis, folder, device, options) as engine:
            ledger = StepLedger(redis, RUN)
            await ledger.take_over()
            asked = AskEngines(ledger, PATIENCE, AwaitRedis(Log("trainer"), RUN), Log("trainer"))
            await asked.ask()
            backend = await compute.run(_backend, folder, device)
            models = TimedModels(backend.tensors, device)
            memory = MemoryTurns(asked, models, device, compute)
            bench = Bench(backend, _batches(shape), device, redis, _publisher(ledger), models, memory, compute)
            await bench.train()  # kernels are loaded by their first use
            first = await bench.publish()
            bench.free["alone"] = models.free_after
            async with busy(engine.url, folder, options, load):
                for _ in range(options.turns):
                    begun = time.monotonic()
                    samples.add({**await bench.take(engine), **await bench.train(), **await bench.publish()})
                    load.windows.append((begun, time.monotonic()))
                    await asyncio.sleep(SERVE_S)
        await redis.aclose()
    compute.close()
    arrivals = load.arrivals
    return Row(
        shape=options.shape,
        device=str(device),
        mode=options.mode,
        parameters=sum(p.numel() for _, p in backend.named_tensors()),
        turns=options.turns,
        trainer_bytes=models.nbytes,
        seconds=samples.medians(),
        first_leave_s=first["leave"],
        free_bytes=bench.free,
        unverified=bench.unverified,
        pauses=load.pauses(),
        finished=arrivals.finished,
        continued=arrivals.continued,
        lost=arrivals.lost,
    )


def free_bytes(device: torch.device) -> int:
    """Of a GPU; 0 for others."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _backend(folder: Path, device: torch.device) -> TorchBackend:
    policy = load_policy(folder, False, 1.0, device)
    return TorchBackend(policy, torch.bfloat16, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder)


def _batches(shape: Shape) -> list[MicroBatch]:
    samples = random_samples(lengths_of("2k", shape), shape.vocabulary, 0)
    return with_columns(pack(samples.batch, shape.budget), samples.columns)


def _publisher(ledger: StepLedger) -> WeightPublisher:
    lender = Lender(ledger, DEADLINES.enrol_s, 0)
    return WeightPublisher(ledger, "127.0.0.1", Log("trainer"), 512, "shared", DEADLINES, transport=lender)


def lines(row: Row) -> str:
    """For people: milliseconds and MiB."""
    phases = "  ".join(f"{phase} {1e3 * seconds:.0f}" for phase, seconds in row.seconds.items())
    free = "  ".join(f"{when} {count >> 20}" for when, count in row.free_bytes.items())
    pauses = "  ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in row.pauses.items())
    return (
        f"{row.shape} on {row.device}, {row.mode}, {row.turns} turns; the trainer's {row.trainer_bytes >> 20} MiB\n"
        f"ms: {phases}\nfree MiB: {free}\npause in ms: {pauses}\n"
        f"requests: {row.finished} finished, {row.continued} continued, {len(row.lost)} lost\n"
        f"unverified: {row.unverified}"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write the row."""
    options = _parser().parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        write_model(SHAPES[options.shape], Path(folder), torch.device(options.device))
        if options.device == "cuda":
            torch.cuda.empty_cache()
        row = asyncio.run(measure(Path(folder), options))
    sys.stdout.write(lines(row) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row)], indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_turns", description=__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--mode", choices=("retract", "abort", "drain"), default="retract")
    parser.add_argument("--server-args", type=json.loads, default={}, help="fields of ServerArgs, as JSON")
    parser.add_argument("--streams", type=int, default=8, help="requests in flight whose tokens are followed")
    parser.add_argument("--others", type=int, default=8, help="requests in flight beside them")
    parser.add_argument("--new-tokens", type=int, default=256, help="of a request")
    parser.add_argument("--engine-command", nargs="*", default=[], help="what starts it; see engine.command")
    parser.add_argument("--engine-log", type=Path, help="where the engine writes its log")
    parser.add_argument("--json", type=Path, help="where to write the row")
    return parser


if __name__ == "__main__":
    main()
