"""Versions in a real SGLang, idle and under load -> seconds by phase, and the pause that requests see."""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.own_redis import own_redis_url
from benchmarks.served_logprobs import logprob_gap
from benchmarks.updated_engine import (
    GAP_S,
    RUN,
    Load,
    UpdatedEngine,
    busy,
    random_model,
    running_engine,
    written_model,
)
from benchmarks.weight_versions import Plain, Receiver, Samples, Weights, devices, make_publisher
from shared.redis_connection import connect

PLAIN = 3


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Medians, in seconds."""

    transport: str
    model: str
    quantization: str
    gb: float
    nbytes: int
    buckets: int
    staged_on: str
    mode: str
    first: dict[str, float]
    """Phases of the first version, in which the group is made."""
    idle: dict[str, float]
    """Phases of versions without requests: of the trainer stage, hash, enrol, connect, broadcast or lend; of the engine
    pause, load, flush, prove, resume, and halted, from pause to resume."""
    loaded: dict[str, float]
    """The same with requests in flight."""
    unverified: int
    """Parameters of the engine that could not be compared with the publisher's; the others were equal each time."""
    logprob_gap: dict[str, float]
    """Between the engine and a plain forward with what the first version stands for; empty if not asked for."""
    requests: int
    pauses: dict[str, float]
    """p50, p99 and max, over requests in flight and versions, of the longest time between two tokens."""
    usual: dict[str, float]
    """The same where no version came."""
    finished: int
    continued: int
    """Requests that the engine ended, and that were asked for again from where they were."""
    lost: list[str]
    bytes_per_second: float
    """Of the broadcast to an idle engine; for ipc, of its load."""
    plain_bytes_per_second: float
    ratio_to_plain_broadcast: float


async def measure(folder: Path, transport: str, options: argparse.Namespace) -> EngineRow:
    """Versions without requests, then as many under load."""
    trainer, engine = devices(transport)
    weights = Weights(random_model(folder, trainer), options.quantization)
    nbytes = sum(tensor.nbytes for _, tensor in weights.published())
    idle, loaded, load, gap = Samples(), Samples(), Load(), dict[str, float]()
    if options.quantization != "none":
        folder = written_model(folder, weights.named, Path(tempfile.mkdtemp()) / folder.name)
    async with own_redis_url() as url:
        plain_s = await _plain_seconds(url, transport, nbytes)
        redis = connect(url)
        publisher = make_publisher(redis, RUN, transport, options)
        try:
            async with running_engine(redis, folder, engine, options) as process:
                updated = UpdatedEngine(redis, publisher, weights, options.mode)
                staged, first = await updated.next()
                if options.compare_logprobs:
                    gap = await logprob_gap(process.plan.url, folder, staged.buckets.tensors, trainer)
                for _ in range(options.versions):
                    idle.add((await updated.next())[1])
                async with busy(process.plan.url, folder, options, load):
                    for _ in range(options.versions):
                        begun = time.monotonic()
                        loaded.add((await updated.next())[1])
                        load.windows.append((begun, time.monotonic()))
                        await asyncio.sleep(GAP_S)
        finally:
            await publisher.close()
            await redis.aclose()
    medians = idle.medians()
    sent_s = medians["load" if transport == "ipc" else "broadcast"]
    return EngineRow(
        transport=transport,
        model=folder.name,
        quantization=options.quantization,
        gb=round(nbytes / 1e9, 4),
        nbytes=nbytes,
        buckets=len(staged.buckets.flat),
        staged_on="host" if staged.buckets.is_on_host else trainer.type,
        mode=options.mode,
        first=first,
        idle=medians,
        loaded=loaded.medians(),
        unverified=updated.unverified,
        logprob_gap=gap,
        requests=options.streams + options.others,
        pauses=load.pauses(),
        usual=load.usual(),
        finished=load.arrivals.finished,
        continued=load.arrivals.continued,
        lost=load.arrivals.lost,
        bytes_per_second=nbytes / sent_s,
        plain_bytes_per_second=nbytes / plain_s,
        ratio_to_plain_broadcast=plain_s / sent_s,
    )


async def _plain_seconds(url: str, transport: str, nbytes: int) -> float:
    """The shortest of some plain broadcasts, or copies, by another process before the engine is there."""
    receiver = Receiver(url, "plain", devices(transport)[1])
    plain = Plain(receiver, transport)
    try:
        return min([await plain.seconds(nbytes) for _ in range(PLAIN)])
    finally:
        receiver.close()


def lines(row: EngineRow) -> str:
    """What was measured, in milliseconds."""

    def milliseconds(seconds: dict[str, float]) -> str:
        return ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())

    return "\n".join(
        [
            f"{row.transport}, {row.model}, quantization {row.quantization}, {row.gb:g} GB in {row.buckets} buckets on"
            f" the {row.staged_on}, {row.mode}",
            f"  first: {milliseconds(row.first)}",
            f"  idle: {milliseconds(row.idle)}",
            f"  {row.requests} requests: {milliseconds(row.loaded)}",
            f"  between two tokens, with a version: {milliseconds(row.pauses)}; without: {milliseconds(row.usual)}",
            f"  {row.finished} requests finished, {row.continued} went on after an update, {len(row.lost)} lost;"
            f" {row.bytes_per_second / 1e9:.1f} GB/s,"
            f" plainly {row.plain_bytes_per_second / 1e9:.1f}, ratio {row.ratio_to_plain_broadcast:.2f};"
            f" {row.unverified} parameters not compared",
            f"  gap of log-probabilities: {row.logprob_gap or 'not compared'}",
        ]
    )
