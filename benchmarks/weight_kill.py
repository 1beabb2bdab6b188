"""An engine that is killed as it takes a version -> what that costs the other engines and the trainer.

`python -m benchmarks.weight_kill --engine FOLDER`: the trainer's publisher on the first GPU (or on the CPU), real
SGLang servers on the next ones, no requests. Some versions go well; then the last engine is killed with SIGKILL in a
chosen phase of an update, and started again for the next kill.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from redis.asyncio import Redis

from benchmarks.own_redis import own_redis_url
from benchmarks.updated_engine import RUN, random_model, running_engine
from benchmarks.weight_versions import Named, make_publisher
from services.rollout.launch_engine import EngineProcess
from services.trainer.publish_weights import PublishReport, WeightPublisher
from shared.enrolment import State, read_part
from shared.redis_connection import connect
from shared.topology import Keys

PHASES: tuple[State, ...] = ("pausing", "ready", "loading", "proving", "done")
LOOK_S, DEADLINE_S = 0.0005, 60.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, in seconds."""

    phase: State
    """What the engine did when it was killed."""
    usual_s: float
    """Until all engines had a version, the median of those before."""
    survivors_s: float
    """Until the others had the version in which the kill fell, and served it."""
    trainer_s: float
    """Until the trainer was done with that version."""
    cost_s: float
    """By how much that is longer than usual."""
    lost: list[str]
    """Other engines that did not get that version."""
    next_s: float
    """Until the others had the next version."""


class Trainer:
    """Publishes versions of the same parameters."""

    def __init__(self, redis: Redis, publisher: WeightPublisher, named: Named) -> None:
        self._redis, self._publisher, self._named, self._version = redis, publisher, named, -1

    async def next(self) -> tuple[float, PublishReport]:
        """Publish the next version; how long it took without the trainer's own hashes."""
        self._version += 1
        with torch.no_grad():
            self._named[self._version % len(self._named)][1].neg_()
        staged = await asyncio.to_thread(self._publisher.stage, self._version, self._version, self._named)
        started = time.monotonic()
        report = await self._publisher.publish(staged)
        assert report is not None, "nothing replaces it"
        return time.monotonic() - started - report.seconds["hash"], report

    async def served_by(self, names: Sequence[str]) -> float:
        """When the last of these engines said that it was done with this version, in seconds since the epoch."""
        parts = [await read_part(self._redis, Keys(RUN), self._version, name) for name in names]
        return max(part.since for part in parts if part is not None)

    async def strike(self, name: str, victim: EngineProcess, phase: State) -> None:
        """Kill an engine as soon as it says that it is in that phase, or a later one, of the version under way."""
        version, until = self._version, time.monotonic() + DEADLINE_S
        reached = PHASES[PHASES.index(phase) :]
        while (part := await read_part(self._redis, Keys(RUN), version, name)) is None or part.state not in reached:
            assert time.monotonic() < until, f"the engine was never {phase}"
            await asyncio.sleep(LOOK_S)
        os.killpg(victim.pid, signal.SIGKILL)


async def measure(options: argparse.Namespace) -> list[Kill]:
    """One kill in each of the phases that were asked for."""
    trainer_device, *others = _devices(options.engines)
    async with own_redis_url() as url:
        redis = connect(url)
        publisher = make_publisher(redis, RUN, options.transport, options)
        trainer = Trainer(redis, publisher, random_model(options.engine, trainer_device))
        names = [f"engine-{number}" for number in range(options.engines)]
        try:
            async with contextlib.AsyncExitStack() as stack:
                for name, device in zip(names[:-1], others, strict=False):
                    await stack.enter_async_context(running_engine(redis, options.engine, device, options, name))
                return [
                    await _kill(trainer, redis, others[-1], options, (names, phase))
                    for phase in options.phases.split(",")
                ]
        finally:
            await publisher.close()
            await redis.aclose()


async def _kill(
    trainer: Trainer, redis: Redis, device: torch.device, options: argparse.Namespace, whom: tuple[list[str], State]
) -> Kill:
    (*others, victim), phase = whom
    async with running_engine(redis, options.engine, device, options, victim) as process:
        took = [await trainer.next() for _ in range(options.versions)][1:]
        began = time.time()
        (trainer_s, report), _ = await asyncio.gather(trainer.next(), trainer.strike(victim, process, phase))
        survivors_s = await trainer.served_by(others) - began - report.seconds["hash"]
        next_s, _ = await trainer.next()
    usual_s = statistics.median(seconds for seconds, _ in took)
    lost = sorted(set(others) - set(report.done))
    return Kill(phase, usual_s, survivors_s, trainer_s, trainer_s - usual_s, lost, next_s)


def _devices(engines: int) -> list[torch.device]:
    count = 1 + engines
    if torch.cuda.device_count() >= count:
        return [torch.device("cuda", number) for number in range(count)]
    return [torch.device("cpu")] * count


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_kill", description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="folder of the model that is served")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--phases", default="loading", help=f"of {', '.join(PHASES[:-1])}, with commas between them")
    parser.add_argument("--versions", type=int, default=5, help="before each kill; the first one is not counted")
    parser.add_argument("--mode", choices=("retract", "in_place"), default="retract")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--staging", choices=("auto", "device", "host"), default="auto")
    parser.add_argument("--server-args", type=json.loads, default={}, help="fields of ServerArgs, as JSON")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.set_defaults(engine_log=None, transport="broadcast", quantization="none")
    options = parser.parse_args(given)
    kills = asyncio.run(measure(options))
    sys.stdout.write("".join(f"{kill}\n" for kill in kills))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(kill) for kill in kills], indent=2))


if __name__ == "__main__":
    main()
