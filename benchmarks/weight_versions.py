"""Versions of random tensors, published to another process -> seconds by phase, and of plain broadcasts between."""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from benchmarks.plain_broadcast import PlainBroadcast
from benchmarks.weight_receiver import NAME, receive
from services.trainer.lend_version import Lender
from services.trainer.publish_weights import Deadlines, PublishReport, WeightPublisher
from services.trainer.quantise_weights import Fp8Form
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from shared.enrolment import read_part
from shared.logs import Log
from shared.topology import Keys

CPU = torch.device("cpu")
TENSOR_BYTES = 2**25
START_S = 120.0
DEADLINES = Deadlines(enrol_s=30, update_s=300, first_engine_s=START_S)
Named = list[tuple[str, torch.Tensor]]


class Weights:
    """Tensors that change from version to version, and the form in which they are published."""

    def __init__(self, named: Named, quantization: str = "none") -> None:
        self.named, self._form = named, Fp8Form([]) if quantization == "fp8" else None

    def published(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.named if self._form is None else self._form(self.named)

    @torch.no_grad()
    def change(self, version: int) -> None:
        """So that an old version is no new one."""
        self.named[version % len(self.named)][1].neg_()


@dataclass
class Samples:
    """Seconds of each version, by phase."""

    phases: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, seconds: dict[str, float]) -> None:
        for phase, value in seconds.items():
            self.phases.setdefault(phase, []).append(value)

    def medians(self) -> dict[str, float]:
        return {phase: statistics.median(values) for phase, values in self.phases.items()}

    def ratio(self, phase: str, other: str) -> float:
        """The median, version by version, of the seconds of one over those of the other."""
        return statistics.median(one / two for one, two in zip(self.phases[phase], self.phases[other], strict=True))


class Receiver:
    """The other process."""

    def __init__(self, redis_url: str, run: str, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=receive, args=(theirs, redis_url, run, str(device)), daemon=True)
        self._process.start()

    async def seconds(self) -> dict[str, float]:
        """How long it has received and copied so far."""
        self._orders.send("seconds")
        return await self.answer()

    def expect_broadcast(self, port: int, nbytes: int) -> None:
        """It takes part, and answers once it has everything."""
        self._orders.send((port, nbytes))

    async def copy_plainly(self, nbytes: int) -> float:
        """Seconds of a copy of as many bytes there."""
        self._orders.send(("copy", nbytes))
        return await self.answer()

    async def answer(self) -> Any:
        return await asyncio.to_thread(self._read, self._orders)

    def close(self) -> None:
        self._orders.send("end")
        self._process.join(START_S)
        self._process.kill()

    def _read(self, orders: Connection) -> Any:
        assert orders.poll(START_S), "the receiver does not answer"
        answer = orders.recv()
        assert answer != "failed", "the receiver could not load a version"
        return answer


class Plain:
    """Broadcasts, or copies, of which nothing comes."""

    def __init__(self, receiver: Receiver, transport: str) -> None:
        self._receiver, self._transport, self._port = receiver, transport, free_port()
        self._group: PlainBroadcast | None = None

    async def seconds(self, nbytes: int) -> float:
        """Until the receiver has so many bytes; the first time a group is made."""
        if self._transport == "ipc":
            return await self._receiver.copy_plainly(nbytes)
        self._receiver.expect_broadcast(self._port, nbytes)
        if self._group is None:
            self._group = await asyncio.to_thread(PlainBroadcast, 0, self._port, devices(self._transport)[0])
        started = time.monotonic()
        await asyncio.to_thread(self._group.run, nbytes)
        await self._receiver.answer()
        return time.monotonic() - started


class Versions:
    """Publishes versions of the same tensors, one after the other."""

    def __init__(
        self, redis: Redis, run: str, publisher: WeightPublisher, receiver: Receiver, weights: Weights
    ) -> None:
        self._redis, self._keys, self._publisher, self._receiver = redis, Keys(run), publisher, receiver
        self._weights, self._version = weights, -1

    async def next(self) -> tuple[Staged, dict[str, float]]:
        """Publish the next version; returns its snapshot, and its seconds by phase."""
        self._version += 1
        started = time.monotonic()
        staged = await asyncio.to_thread(self._publisher.stage, self._version, self._version, self._weights.published())
        stage_s = time.monotonic() - started
        await asyncio.to_thread(staged.buckets.wait_copied)
        copy_s = time.monotonic() - started
        before = await self._receiver.seconds()
        report = await self._publish(staged)
        after, part = await self._receiver.seconds(), await read_part(self._redis, self._keys, self._version, NAME)
        assert part is not None, "who is done has said so"
        self._weights.change(self._version)
        return staged, {
            "stage": stage_s,
            "copy": copy_s,
            "hash": report.seconds["hash"],
            "enrol": report.seconds["enrol"],
            "connect": report.seconds.get("connect", report.seconds.get("lend", 0.0)),
            "send": report.seconds.get("broadcast", part.seconds["load"]),
            "transfer": after["receive"] - before["receive"],
            "load": after["copy"] - before["copy"],
            "verify": part.seconds["prove"],
            "total": report.seconds["total"],
        }

    async def _publish(self, staged: Staged) -> PublishReport:
        report = await self._publisher.publish(staged)
        assert report is not None, "nothing replaces it"
        assert (report.done, report.unverified) == ((NAME,), ()), report
        return report


def devices(transport: str) -> tuple[torch.device, torch.device]:
    """Of the trainer and of the receiver, or the engine."""
    if transport == "ipc":
        device = torch.device("cuda:0") if torch.cuda.is_available() else CPU
        return device, device
    return (torch.device("cuda:0"), torch.device("cuda:1")) if transport == "nccl" else (CPU, CPU)


def make_publisher(redis: Redis, run: str, transport: str, options: argparse.Namespace) -> WeightPublisher:
    """The trainer's, as its settings would make it."""
    ledger = StepLedger(redis, run)
    lender = Lender(ledger, DEADLINES.enrol_s, 0) if transport == "ipc" else None
    sizes, log = (options.bucket_mib, options.staging), Log("trainer")
    return WeightPublisher(ledger, "127.0.0.1", log, *sizes, DEADLINES, transport=lender)


def random_tensors(nbytes: int, device: torch.device) -> Named:
    """bfloat16 matrices of 32 MiB, the last one of what is left."""
    sizes = [TENSOR_BYTES] * (nbytes // TENSOR_BYTES)
    rest = nbytes % TENSOR_BYTES // 1024 * 1024
    generator = torch.Generator(device).manual_seed(0)
    return [
        (f"layers.{index}.weight", torch.randn(size // 2, generator=generator, device=device).bfloat16().view(-1, 512))
        for index, size in enumerate([*sizes, rest] if rest else sizes)
    ]
