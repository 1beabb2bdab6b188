"""Steps of a tenth of a second -> what publishing a version after each costs them: `python -m benchmarks.publishing`.

A real model trains on one thread; every version goes through the trainer's publisher, over gloo, to a receiver in
another process that runs the sidecar's own code and proves it. Blocks of steps with and without publishing take turns,
and each is compared with its neighbour, so that what else the machine does counts for both.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.own_redis import own_redis_url
from benchmarks.trainer_samples import GRPO_LOSS, random_samples
from benchmarks.trainer_shapes import Shape, write_model
from benchmarks.weight_versions import START_S, Receiver
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.compute_thread import ComputeThread
from services.trainer.evaluation_gate import EvaluationGate
from services.trainer.load_model import load_policy
from services.trainer.packing import MicroBatch, pack, with_columns
from services.trainer.publish_versions import MakeRoom, PublishedVersions
from services.trainer.publish_weights import Deadlines, PublishReport, WeightPublisher
from services.trainer.settled_heap import clear_heap, settle_heap
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.redis_connection import connect_checked
from shared.run_settings import RunSettings

RUN = "publishing"
SHAPES = {"demo": Shape(128, 2, 4, 2, 32, 256, 320), "larger": Shape(256, 4, 4, 2, 64, 768, 2048)}
"""The model of `sluice demo`, and one that is ten times as large and has a tenth of the tokens in a step."""
LENGTH = 32
"""Tokens of a sample; as many samples as make a step long enough."""
CPU = torch.device("cpu")
DEADLINES = Deadlines(enrol_s=30, update_s=60, first_engine_s=START_S)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of publishing, to training."""

    parameters: int
    tokens: int
    """Of a step."""
    step_s: float
    """The median without publishing."""
    step_publishing_s: float
    """The median with publishing."""
    offer_s: float
    """The median of what a step waits for its snapshot."""
    lost: float
    """By how much blocks with publishing are longer than their neighbours without: the median over the pairs."""
    lost_quartiles: list[float]
    lost_cpu: float
    """The same by the processor time of the thread that trains: what others take from it does not count."""
    steps: int
    """With publishing, and as many without."""
    versions: int
    """That the receiver has proven, of one for each step and each block; others were replaced before their turn."""


class CountingPublisher(WeightPublisher):
    """Keeps the reports."""

    reports: list[PublishReport]

    async def publish(self, staged: Staged, make_room: MakeRoom | None = None) -> PublishReport | None:
        report = await super().publish(staged, make_room)
        if report is not None:
            assert len(report.done) == 1, report.failed
            assert report.unverified == ()
            self.reports.append(report)
        return report


@dataclass(frozen=True, slots=True)
class Block:
    """Some steps in a row."""

    seconds: list[float]
    """Of each, with its offer."""
    cpu: float
    """Seconds of processor time of the thread that trains."""


@dataclass
class Training:
    """A model, its batches, and where its versions go."""

    backend: TorchBackend
    batches: list[MicroBatch]
    compute: ComputeThread
    versions: PublishedVersions
    step: int = 0
    offers: list[float] = field(default_factory=list[float])

    async def block(self, steps: int, is_publishing: bool) -> Block:
        """Train so many steps, and offer each. One before them is not measured, whose version is on its way in them."""
        await self._train(is_publishing)
        cpu = await self.compute.run(time.thread_time)
        seconds = [await self._train(is_publishing) for _ in range(steps)]
        cpu = await self.compute.run(time.thread_time) - cpu
        await self.versions.settle()
        return Block(seconds, cpu)

    async def _train(self, is_publishing: bool) -> float:
        started = time.monotonic()
        self.step += 1
        await self.compute.run(self.backend.train_step, self.batches, GRPO_LOSS, 1e-5, self.step)
        if is_publishing:
            offered = time.monotonic()
            await self.versions.offer(self.step)
            self.offers.append(time.monotonic() - offered)
        return time.monotonic() - started


async def measure(shape: Shape, pairs: int, block: int, step_s: float) -> Cost:
    """Pairs of blocks of `block` steps of about `step_s` seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder, compute = Path(name) / "model", ComputeThread(1)
        write_model(shape, folder, CPU)
        policy = await compute.run(load_policy, folder, False, 1.0, CPU)
        backend = TorchBackend(policy, torch.float32, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder)
        batches = await _batches(shape, backend, compute, step_s)
        async with own_redis_url() as url:
            return await _measure(url, backend, batches, compute, pairs, block)


async def _measure(
    url: str, backend: TorchBackend, batches: list[MicroBatch], compute: ComputeThread, pairs: int, block: int
) -> Cost:
    redis, log = await connect_checked(url, START_S), Log("trainer")
    publisher = CountingPublisher(StepLedger(redis, RUN), "127.0.0.1", log, deadlines=DEADLINES)
    publisher.reports = []
    gate = EvaluationGate(redis, _settings(), _never, AwaitRedis(log, RUN), log)
    versions = PublishedVersions(publisher, backend.named_tensors, compute, gate, 0)
    training = Training(backend, batches, compute, versions)
    receiver = Receiver(url, RUN, CPU)
    try:
        await training.versions.offer(0)
        await training.versions.settle()
        settle_heap()
        without, published = list[Block](), list[Block]()
        for pair in range(pairs):
            for is_publishing in (pair % 2 == 0, pair % 2 == 1):
                (published if is_publishing else without).append(await training.block(block, is_publishing))
    finally:
        clear_heap()
        await publisher.close()
        receiver.close()
        compute.close()
        await redis.aclose()
    neighbours = list(zip(published, without, strict=True))
    lost = sorted(sum(one.seconds) / sum(other.seconds) - 1 for one, other in neighbours)
    return Cost(
        parameters=sum(tensor.numel() for _, tensor in backend.named_tensors()),
        tokens=sum(int(batch.packed.rows.numel()) for batch in batches),
        step_s=statistics.median(second for each in without for second in each.seconds),
        step_publishing_s=statistics.median(second for each in published for second in each.seconds),
        offer_s=statistics.median(training.offers),
        lost=statistics.median(lost),
        lost_quartiles=[lost[pairs // 4], lost[3 * pairs // 4]],
        lost_cpu=statistics.median(one.cpu / other.cpu - 1 for one, other in neighbours),
        steps=pairs * block,
        versions=len(publisher.reports) - 1,
    )


async def _batches(shape: Shape, backend: TorchBackend, compute: ComputeThread, step_s: float) -> list[MicroBatch]:
    """As many samples as a step of that length takes, in one micro-batch."""

    def of(samples: int) -> list[MicroBatch]:
        made = random_samples([LENGTH] * samples, shape.vocabulary, 0)
        return with_columns(pack(made.batch, samples * LENGTH), made.columns)

    def seconds(samples: int) -> float:
        batches, taken = of(samples), list[float]()
        for step in range(6):
            started = time.monotonic()
            backend.train_step(batches, GRPO_LOSS, 1e-5, step)
            taken.append(time.monotonic() - started)
        return statistics.median(taken)

    few, many = await compute.run(seconds, 4), await compute.run(seconds, 16)
    each = max((many - few) / 12, 1e-5)
    return of(max(4, round(4 + (step_s - few) / each)))


def _settings() -> RunSettings:
    sections = {"data": {"datasets": [{"name": "none"}]}, "trainer": {"steps": 10**6}, "model": {"path": "none"}}
    return RunSettings.model_validate({"name": RUN, **sections})


async def _never() -> bool:
    return False


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publishing", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--pairs", type=int, default=80, help="pairs of blocks, one of which publishes")
    parser.add_argument("--block", type=int, default=4, help="steps of a block")
    parser.add_argument("--step-s", type=float, default=0.1, help="seconds of a step, about")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(given)
    cost = asyncio.run(measure(SHAPES[options.shape], options.pairs, options.block, options.step_s))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(cost), indent=2))
    low, high = (100 * quartile for quartile in cost.lost_quartiles)
    sys.stdout.write(
        f"{cost.parameters / 1e6:.2f}M parameters, {cost.tokens} tokens, {cost.steps} steps of"
        f" {1e3 * cost.step_s:.1f} ms ({1e3 * cost.step_publishing_s:.1f} ms with publishing,"
        f" {1e3 * cost.offer_s:.2f} ms of them for the snapshot):"
        f" {100 * cost.lost:+.2f} % longer (quartiles of the pairs {low:+.2f} and {high:+.2f} %),"
        f" {100 * cost.lost_cpu:+.2f} % more processor time of the training thread; {cost.versions} versions proven\n"
    )


if __name__ == "__main__":
    main()
