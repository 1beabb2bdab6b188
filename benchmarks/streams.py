"""Groups through Redis -> groups a second of the real path against a bare loop: `python -m benchmarks.streams`."""

import argparse
import asyncio
import json
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from benchmarks.own_redis import own_redis
from benchmarks.stream_path import RealPath, parts, payload, sample_rollout
from shared.messages import Rollout

ROUNDS = 4
"""The two loops take turns, so that what else the machine does falls on both."""
BARE, GROUP = "bare", "readers"


async def bare_loop(redis: Redis, entry: bytes, group_size: int, groups: int) -> float:
    """Seconds to XADD, XREADGROUP and XACK + XDEL the attempts of so many groups, a group at a time."""
    began = time.perf_counter()
    for _ in range(groups):
        async with redis.pipeline(transaction=True) as pipe:
            for _ in range(group_size):
                pipe.xadd(BARE, {"m": entry})
            await pipe.execute()
        answer: Any = await redis.xreadgroup(GROUP, "one", {BARE: ">"}, count=group_size)
        ids = [entry_id for entry_id, _ in answer[0][1]]
        async with redis.pipeline(transaction=True) as pipe:
            pipe.xack(BARE, GROUP, *ids)
            pipe.xdel(BARE, *ids)
            await pipe.execute()
    return time.perf_counter() - began


async def cpu_seconds(redis: Redis) -> float:
    """Of this process and of the server."""
    used = await redis.info("cpu")
    return time.process_time() + used["used_cpu_sys"] + used["used_cpu_user"]


async def compare(redis: Redis, rollout: Rollout, groups: int, groups_per_step: int) -> dict[str, Any]:
    """Both loops over the same payload, in turns; the first turn warms up and does not count."""
    entry, size, tokens = payload(rollout), rollout.group_size, len(rollout.token_ids)
    await redis.xgroup_create(BARE, GROUP, mkstream=True)
    path = RealPath(redis, rollout, groups_per_step)
    await path.open()
    steps = max(1, groups // groups_per_step // ROUNDS)
    bare: list[float] = []
    real: list[float] = []
    cpu = [0.0, 0.0]
    for turn in range(ROUNDS + 1):
        before = await cpu_seconds(redis)
        bare.append(await bare_loop(redis, entry, size, steps * groups_per_step))
        between = await cpu_seconds(redis)
        if turn == 1:
            path.seconds.clear()
        began = time.perf_counter()
        await path.run(steps)
        real.append(time.perf_counter() - began)
        if turn:
            cpu[0] += between - before
            cpu[1] += await cpu_seconds(redis) - between
        await path.retain()
    done = steps * groups_per_step
    rates = [done / min(bare[1:]), done / min(real[1:])]
    stored = sum(map(len, parts(rollout)))
    ratios = sorted(one / other for one, other in zip(bare[1:], real[1:], strict=True))
    return {
        "groups": done * ROUNDS,
        "group_size": size,
        "tokens": tokens,
        "groups_per_step": groups_per_step,
        "bare_groups_s": rates[0],
        "real_groups_s": rates[1],
        "real_tokens_s": rates[1] * size * tokens,
        "share": float(np.median(ratios)),
        "bare_cpu_ms": cpu[0] / done / ROUNDS * 1000,
        "real_cpu_ms": cpu[1] / done / ROUNDS * 1000,
        "bytes_per_token": stored / tokens,
        "bytes_per_token_without_text": (stored - len(rollout.text)) / tokens,
        "hops_ms": {hop: _percentiles(seconds) for hop, seconds in path.seconds.items()},
    }


async def soak(redis: Redis, groups: int, groups_per_step: int) -> dict[str, Any]:
    """Redis' memory while small groups pass through, a checkpoint covering every tenth step."""
    path = RealPath(redis, sample_rollout(2, 16), groups_per_step)
    await path.open()
    steps, began = groups // groups_per_step, time.perf_counter()
    marks = {max(1, steps * share // 100): share for share in (10, 50, 100)}
    memory: dict[str, int] = {}
    for step in range(1, steps + 1):
        await path.run(1)
        if step % 10 == 0 or step in marks:
            await path.retain()
            path.seconds.clear()
        if step in marks:
            memory[f"{marks[step]}%"] = (await redis.info("memory"))["used_memory"]
    seconds = time.perf_counter() - began
    return {"groups": steps * groups_per_step, "groups_s": steps * groups_per_step / seconds, "used_memory": memory}


def redis_benchmark(redis: Redis, entry_bytes: int) -> str:
    """What redis-benchmark says of XADD with entries of so many bytes, or why it says nothing."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return "not installed"
    where: dict[str, Any] = redis.connection_pool.connection_kwargs
    arguments = ["-p", str(where["port"]), "-a", str(where["password"]), "-n", "2000", "-c", "1", "-q", "-x"]
    command = [
        program,
        *arguments,
        "XADD",
        "xadd-benchmark",
        "MAXLEN",
        "100",
        "*",
        "m",
    ]  # -x: the last one is the input
    done = subprocess.run(command, capture_output=True, input=b"x" * entry_bytes, timeout=120, check=False)
    said = (done.stdout if done.returncode == 0 else done.stderr).decode().replace("\r", "\n").strip().splitlines()
    return said[-1].partition(": ")[2] if done.returncode == 0 else said[-1]


def _percentiles(seconds: list[float]) -> dict[str, float]:
    milliseconds = np.asarray(seconds) * 1000
    return {"p50": float(np.percentile(milliseconds, 50)), "p99": float(np.percentile(milliseconds, 99))}


def hardware() -> str:
    """The processor by name, and how many of it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0].partition(':')[2].strip()}, Python {platform.python_version()}"


def report(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    bare_ms, real_ms = result["bare_cpu_ms"], result["real_cpu_ms"]
    lines = [
        "| | groups/s | tokens/s |",
        "|---|---|---|",
        f"| bare XADD, XREADGROUP, XACK | {result['bare_groups_s']:.0f} "
        f"| {result['bare_groups_s'] * result['group_size'] * result['tokens'] / 1e6:.1f} M |",
        f"| the whole path | {result['real_groups_s']:.0f} | {result['real_tokens_s'] / 1e6:.1f} M |",
        "",
        f"The path moves {result['share']:.0%} of the bare loop's groups (median of {ROUNDS} turns each).",
        f"CPU of client and server for a group: {bare_ms:.1f} ms in the bare loop, {real_ms:.1f} ms on the path;"
        f" the share is {bare_ms / real_ms:.0%}.",
        f"{result['bytes_per_token']:.1f} bytes a token, {result['bytes_per_token_without_text']:.1f} without text.",
        f"redis-benchmark: {result['redis_benchmark']}.",
        "",
        "| hop | p50 ms | p99 ms |",
        "|---|---|---|",
    ]
    return "\n".join(
        [*lines, *(f"| {hop} | {ms['p50']:.2f} | {ms['p99']:.2f} |" for hop, ms in result["hops_ms"].items())]
    )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, on a server of its own."""
    async with own_redis(arguments.port) as redis:
        server = (await redis.info("server"))["redis_version"]
        about = {"hardware": hardware(), "redis": server, "date": time.strftime("%Y-%m-%d")}
        if arguments.soak:
            return {**about, **await soak(redis, arguments.groups or 100_000, arguments.groups_per_step)}
        rollout = sample_rollout(arguments.group_size, arguments.tokens)
        result = await compare(redis, rollout, arguments.groups or 512, arguments.groups_per_step)
        said = await asyncio.to_thread(redis_benchmark, redis, len(payload(rollout)))
        return {**about, **result, "redis_benchmark": said}


def main() -> None:
    """Print the results, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--groups", type=int, default=0, help="512, or 100,000 with --soak")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096, help="of each attempt")
    parser.add_argument("--groups-per-step", type=int, default=32)
    parser.add_argument("--soak", action="store_true", help="Redis' memory over many small groups instead")
    parser.add_argument("--port", type=int, default=0, help="of the Redis that is started; 0 for a free one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    print(json.dumps(result, indent=1) if arguments.soak else report(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
