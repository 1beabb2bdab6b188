"""Random tensors -> the seconds that a weight version takes, by phase: `python -m benchmarks.weights`.

The trainer's publisher sends versions to a receiver in another process, which runs the sidecar's own code, over gloo
on one CPU, or over NCCL from the first GPU to the second; or the receiver copies them out of the publisher's memory,
on one GPU if there is one (`--transport ipc`). After each version the same two processes broadcast as many bytes and do
nothing else, or for ipc the receiver copies as many: `ratio_to_plain_broadcast` compares the rates.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.own_redis import own_redis_url
from benchmarks.weight_versions import START_S, Receiver, Samples, Versions, random_tensors
from services.trainer.lend_version import Lender
from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.step_ledger import StepLedger
from shared.logs import Log
from shared.redis_connection import connect_checked

TRANSPORTS = ("gloo", "nccl", "ipc")
CPU = torch.device("cpu")
PHASES = ("stage", "copy", "hash", "enrol", "send", "transfer", "load", "verify", "total")
DEADLINES = Deadlines(enrol_s=30, update_s=300, first_engine_s=START_S)


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the versions after the first one."""

    transport: str
    gb: float
    nbytes: int
    tensors: int
    buckets: int
    staged_on: str
    """host, or the type of the trainer's device."""
    versions: int
    seconds: dict[str, float]
    """stage: until training may go on; copy: until the snapshot is whole; hash; enrol; send: until the trainer has sent
    all, which is made of transfer, in which the receiver waits for bytes, and load, in which it copies what came;
    verify; total: from the end of the snapshot until the receiver has said that it is done."""
    connect_s: float
    """Making the group, for the first version."""
    bytes_per_second: float
    """Of the transfer; for ipc, where that only opens the memory, of the load."""
    plain_bytes_per_second: float
    ratio_to_plain_broadcast: float


async def measure(transport: str, gb: float, options: argparse.Namespace) -> Row:
    """Versions of one size; the first one is not counted."""
    trainer, engine = devices(transport)
    is_lent = transport == "ipc"
    run, named = f"weights-{gb:g}", random_tensors(int(gb * 1e9), trainer)
    async with own_redis_url() as url:
        redis = await connect_checked(url, START_S)
        ledger = StepLedger(redis, run)
        lender = Lender(ledger, DEADLINES.enrol_s) if is_lent else None
        log, sizes = Log("trainer"), (options.bucket_mib, options.staging)
        publisher = WeightPublisher(ledger, "127.0.0.1", log, *sizes, DEADLINES, transport=lender)
        receiver = Receiver(url, run, engine)
        versions, samples = Versions(redis, run, publisher, receiver, named), Samples()
        try:
            staged, first = await versions.next()
            buckets = staged.buckets
            await versions.compare(trainer, buckets.nbytes, is_lent)
            for _ in range(options.versions):
                _, seconds = await versions.next()
                samples.add({**seconds, "plain": await versions.compare(trainer, buckets.nbytes, is_lent)})
        finally:
            await publisher.close()
            receiver.close()
            await redis.aclose()
    medians, arrival = samples.medians(), "load" if is_lent else "transfer"
    return Row(
        transport=transport,
        gb=gb,
        nbytes=buckets.nbytes,
        tensors=len(named),
        buckets=len(buckets.flat),
        staged_on="host" if buckets.is_on_host else trainer.type,
        versions=options.versions,
        seconds={phase: medians[phase] for phase in PHASES},
        connect_s=first["connect"],
        bytes_per_second=buckets.nbytes / medians[arrival],
        plain_bytes_per_second=buckets.nbytes / medians["plain"],
        ratio_to_plain_broadcast=samples.ratio("plain", arrival),
    )


def devices(transport: str) -> tuple[torch.device, torch.device]:
    """Of the trainer and of the receiver."""
    if transport == "ipc":
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        return device, device
    return (torch.device("cuda:0"), torch.device("cuda:1")) if transport == "nccl" else (CPU, CPU)


def table(rows: Sequence[Row]) -> str:
    """A line a row, in milliseconds."""
    names = ["transport", "GB", "staged on", *PHASES, "GB/s", "plain GB/s", "ratio"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        times = [f"{1e3 * row.seconds[phase]:.1f}" for phase in PHASES]
        rates = [f"{row.bytes_per_second / 1e9:.2f}", f"{row.plain_bytes_per_second / 1e9:.2f}"]
        ratio = f"{row.ratio_to_plain_broadcast:.2f}"
        lines.append("| " + " | ".join([row.transport, f"{row.gb:g}", row.staged_on, *times, *rates, ratio]) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument(
        "--sizes-gb", default="0.1,1", help="sizes of a version in 10^9 bytes, with commas between them"
    )
    parser.add_argument("--transport", choices=TRANSPORTS, default="gloo")
    parser.add_argument("--versions", type=int, default=7, help="measured versions of each size")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--staging", choices=("auto", "device", "host"), default="auto")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(given)
    rows: list[Row] = []
    for gb in map(float, options.sizes_gb.split(",")):
        rows.append(asyncio.run(measure(options.transport, gb, options)))
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
