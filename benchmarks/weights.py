"""Random tensors -> the seconds that a weight version takes, by phase: `python -m benchmarks.weights`.

The trainer's publisher sends versions to a receiver in another process, which runs the sidecar's own code, over gloo
on one CPU, or over NCCL from the first GPU to the second; or the receiver copies them out of the publisher's memory,
on one GPU if there is one (`--transport ipc`). After each version the same two processes broadcast as many bytes and do
nothing else, or for ipc the receiver copies as many: `ratio_to_plain_broadcast` compares the rates.

With `--engine FOLDER` a real SGLang that serves this model takes the versions, first idle, then with requests in
flight, and the pause that these see is measured too.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import weight_pause
from benchmarks.own_redis import own_redis_url
from benchmarks.weight_versions import (
    Plain,
    Receiver,
    Samples,
    Versions,
    Weights,
    devices,
    make_publisher,
    random_tensors,
)
from shared.redis_connection import connect

TRANSPORTS = ("gloo", "nccl", "ipc")
PHASES = ("stage", "copy", "hash", "enrol", "send", "transfer", "load", "verify", "total")


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the versions after the first one."""

    transport: str
    quantization: str
    gb: float
    """In bfloat16."""
    nbytes: int
    """Of what is published."""
    tensors: int
    buckets: int
    staged_on: str
    """host, or the type of the trainer's device."""
    versions: int
    seconds: dict[str, float]
    """stage: until training may go on; copy: until the snapshot is whole, and quantised if it is to be; hash; enrol;
    send: until the trainer has sent all, which is made of transfer, in which the receiver waits for bytes, and load, in
    which it copies what came; verify; total: from the end of the snapshot until the receiver says that it is done."""
    connect_s: float
    """Making the group, for the first version."""
    bytes_per_second: float
    """Of the transfer; for ipc, where that only opens the memory, of the load."""
    plain_bytes_per_second: float
    ratio_to_plain_broadcast: float


async def measure(transport: str, gb: float, options: argparse.Namespace) -> Row:
    """Versions of one size; the first one is not counted."""
    trainer, engine = devices(transport)
    run, weights = f"weights-{gb:g}", Weights(random_tensors(int(gb * 1e9), trainer), options.quantization)
    async with own_redis_url() as url:
        redis = connect(url)
        publisher, receiver = make_publisher(redis, run, transport, options), Receiver(url, run, engine)
        versions, plain = Versions(redis, run, publisher, receiver, weights), Plain(receiver, transport)
        samples = Samples()
        try:
            staged, first = await versions.next()
            buckets = staged.buckets
            await plain.seconds(buckets.nbytes)
            for _ in range(options.versions):
                _, seconds = await versions.next()
                samples.add({**seconds, "plain": await plain.seconds(buckets.nbytes)})
        finally:
            await publisher.close()
            receiver.close()
            await redis.aclose()
    medians, arrival = samples.medians(), "load" if transport == "ipc" else "transfer"
    return Row(
        transport=transport,
        quantization=options.quantization,
        gb=gb,
        nbytes=buckets.nbytes,
        tensors=len(buckets.tensors),
        buckets=len(buckets.flat),
        staged_on="host" if buckets.is_on_host else trainer.type,
        versions=options.versions,
        seconds={phase: medians[phase] for phase in PHASES},
        connect_s=first["connect"],
        bytes_per_second=buckets.nbytes / medians[arrival],
        plain_bytes_per_second=buckets.nbytes / medians["plain"],
        ratio_to_plain_broadcast=samples.ratio("plain", arrival),
    )


def table(rows: Sequence[Row]) -> str:
    """A line a row."""
    names = [
        "transport",
        "quantization",
        "GB",
        "staged on",
        *(f"{phase}, ms" for phase in PHASES),
        "GB/s",
        "plain GB/s",
        "ratio",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        times = [f"{1e3 * row.seconds[phase]:.1f}" for phase in PHASES]
        rates = [f"{row.bytes_per_second / 1e9:.2f}", f"{row.plain_bytes_per_second / 1e9:.2f}"]
        ratio = f"{row.ratio_to_plain_broadcast:.2f}"
        cells = [row.transport, row.quantization, f"{row.gb:g}", row.staged_on, *times, *rates, ratio]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write the rows."""
    options = _parser().parse_args(given)
    rows: list[Row | weight_pause.EngineRow] = []
    if options.engine is not None:
        engine_row = asyncio.run(weight_pause.measure(options.engine, options.transport, options))
        rows.append(engine_row)
        sys.stdout.write(weight_pause.lines(engine_row) + "\n")
    else:
        measured = [asyncio.run(measure(options.transport, float(gb), options)) for gb in options.sizes_gb.split(",")]
        rows += measured
        sys.stdout.write(table(measured) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument(
        "--sizes-gb", default="0.1,1", help="sizes of a version in 10^9 bytes, with commas between them"
    )
    parser.add_argument("--transport", choices=TRANSPORTS, default="gloo")
    parser.add_argument("--versions", type=int, default=7, help="measured versions of each size, and of each load")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--staging", choices=("auto", "device", "host"), default="auto")
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none", help="of what is published")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    engine = parser.add_argument_group("a real SGLang")
    engine.add_argument("--engine", type=Path, help="folder of the model that it serves; its size is the version's")
    engine.add_argument("--mode", choices=("retract", "in_place"), default="retract")
    engine.add_argument("--server-args", type=json.loads, default={}, help="fields of ServerArgs, as JSON")
    engine.add_argument(
        "--compare-logprobs", action="store_true", help="with those of a plain forward, after version 0"
    )
    engine.add_argument("--streams", type=int, default=16, help="requests in flight whose tokens are followed")
    engine.add_argument("--others", type=int, default=112, help="requests in flight beside them")
    engine.add_argument("--new-tokens", type=int, default=512, help="of a request")
    engine.add_argument("--engine-log", type=Path, help="where the engine writes its log")
    return parser


if __name__ == "__main__":
    main()
