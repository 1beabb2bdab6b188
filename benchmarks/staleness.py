"""max_staleness, policy, over-sampling -> throughput, idle time, staleness and length bias: a table of simulated runs.

`python -m benchmarks.staleness [--steps N] [--json FILE]`
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis

from benchmarks.long_tail import LongTail
from benchmarks.measure_run import Measured, measure
from benchmarks.own_redis import own_redis
from benchmarks.simulated_run import Machines, SimulatedRun, simulated_settings
from shared.accounts import by_state

BOUNDS = (0, 1, 2, 4, 8)
SPARE = 32
"""Over-sampling: a quarter of a step."""
COLUMNS = (
    "max_staleness",
    "policy",
    "over_sampling",
    "steps/h",
    "x sync",
    "engines idle",
    "trainer idle",
    "staleness mean",
    "by token",
    "max",
    "beyond",
    "dropped tokens",
    "trained length",
    "longest tenth trained",
    "KS",
)
Setting = dict[str, Any]


def settings_to_compare() -> dict[str, list[Setting]]:
    """Machines -> rollout settings; the first of each are synchronous, where the policy does not matter."""
    policies = [("train", 0), ("drop", 0), ("wait", 0), ("train", SPARE), ("drop", SPARE)]
    choices = [*product(("train", "drop"), ("fifo", "freshest")), ("wait", "fifo")]
    sync = {"max_staleness": 0, "staleness_policy": "train"}
    return {
        "balanced": [
            {"max_staleness": bound, "staleness_policy": policy, "over_sampling": spare}
            for bound, (policy, spare) in product(BOUNDS, policies)
        ],
        "slow trainer": [sync]
        + [{"max_staleness": 4, "staleness_policy": policy, "selection": selection} for policy, selection in choices],
    }


async def compare(redis: Redis, steps: int, seed: int) -> list[dict[str, Any]]:
    """One run for each setting; prints a table for each kind of machines, a line as each run ends."""
    rows: list[dict[str, Any]] = []
    for machines, settings in settings_to_compare().items():
        print(f"\n{machines}\n\n{line(COLUMNS)}\n|{'---|' * len(COLUMNS)}")
        sync: float | None = None
        for rollout in settings:
            measured, dropped = await run_one(redis, machines, rollout, steps, seed)
            sync = sync or measured.steps_per_hour
            rows.append({"machines": machines, **rollout, **asdict(measured), "dropped_tokens": dropped})
            print(line(cells(rollout, measured, dropped, sync)), flush=True)
    return rows


async def run_one(redis: Redis, machines: str, rollout: Setting, steps: int, seed: int) -> tuple[Measured, float]:
    """What was measured, and which share of the generated tokens was dropped, by the run's accounts."""
    await redis.flushdb()
    speeds = Machines()
    if machines == "slow trainer":
        speeds = replace(speeds, train_tokens_per_s=speeds.train_tokens_per_s / 2)
    tail, settings = LongTail(seed), simulated_settings(steps, **rollout)
    run = SimulatedRun(redis, settings, speeds, tail)
    measured = measure(await run.run(), settings, tail, speeds.workers)
    raw = cast(dict[bytes, bytes], await redis.hgetall(run.keys.accounts))
    states = by_state({name.decode(): int(count) for name, count in raw.items()})
    dropped = sum(margins.get("dataset|rows", 0) for state, margins in states.items() if state.startswith("dropped"))
    return measured, dropped / states["generated"]["dataset|rows"]


def cells(rollout: Setting, measured: Measured, dropped: float, sync: float) -> Sequence[str]:
    """One line of the table, in the order of COLUMNS."""
    policy = rollout["staleness_policy"] + (", freshest" if rollout.get("selection") == "freshest" else "")
    return (
        str(rollout["max_staleness"]),
        policy,
        str(rollout.get("over_sampling", 0)),
        f"{measured.steps_per_hour:.1f}",
        f"{measured.steps_per_hour / sync:.2f}",
        f"{measured.engines_idle:.0%}",
        f"{measured.trainer_idle:.0%}",
        f"{measured.staleness_mean:.2f}",
        f"{measured.token_staleness_mean:.2f}",
        str(measured.staleness_max),
        f"{measured.beyond:.1%}",
        f"{dropped:.1%}",
        f"{measured.length_bias:+.1%}",
        f"{measured.trained_by_length[-1]:.0%}",
        f"{measured.distance:.3f}",
    )


def line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


async def measure_all(steps: int, seed: int, port: int) -> list[dict[str, Any]]:
    async with own_redis(port) as redis:
        return await compare(redis, steps, seed)


def main() -> None:
    """Print the tables; all numbers, with shares by length, go to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.staleness", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0, help="of the Redis that is started; 0 for a free one")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    given = parser.parse_args()
    rows = asyncio.run(measure_all(given.steps, given.seed, given.port))
    if given.json is not None:
        given.json.write_text(json.dumps({"steps": given.steps, "seed": given.seed, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
