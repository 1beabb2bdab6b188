"""64 uneven workers with long-tailed lengths, simulated in time and real in everything else: the bound holds."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from redis.asyncio import Redis

from benchmarks.long_tail import LongTail
from benchmarks.run_trace import RunTrace
from benchmarks.simulated_engines import ServedVersions
from benchmarks.simulated_run import Machines, SimulatedRun, simulated_settings
from shared.admission import admission_limit
from shared.run_settings import RunSettings

STEPS, GROUPS = 12, 24
BOUNDS = (0, 1, 2, 4, 8)
MACHINES = Machines(workers=64, train_tokens_per_s=4000)
"""The trainer is fast enough for the longest answers to take many versions, and slow enough for a queue at times."""
BOUNDED = (("wait", 0), ("drop", 0), ("drop", 16))


def settings(**rollout: Any) -> RunSettings:
    return simulated_settings(STEPS, group_size=2, groups_per_step=GROUPS, **rollout)


async def simulate(
    redis: Redis,
    settings: RunSettings,
    shape: Literal["lognormal", "pareto"] = "lognormal",
    seed: int = 0,
    machines: Machines = MACHINES,
) -> tuple[SimulatedRun, RunTrace]:
    run = SimulatedRun(redis, settings, machines, LongTail(seed, shape))
    return run, await run.run()


def oldest(trace: RunTrace) -> int:
    return max(max(step.staleness) for step in trace.steps)


def beyond(trace: RunTrace, bound: int) -> int:
    return sum(staleness > bound for step in trace.steps for staleness in step.staleness)


async def check_accounts(run: SimulatedRun, trace: RunTrace) -> None:
    """Every step is full, no group is in two, admission was never exceeded and every slot returned once."""
    counters = await run.ledger.counters()
    trained = [group for step in trace.steps for group in step.group_ids]
    assert len(trace.steps) == counters["step"] == STEPS
    assert len(trained) == len(set(trained)) == await run.redis.bitcount(run.keys.trained) == STEPS * GROUPS
    assert await run.redis.bitcount(run.keys.dropped) == counters.get("dropped", 0)
    await run.redis.bitop("AND", f"{run.keys.trained}:and", run.keys.trained, run.keys.dropped)
    assert await run.redis.bitcount(f"{run.keys.trained}:and") == 0
    assert trace.most_over_limit <= 0
    assert counters["released"] - counters.get("dropped", 0) <= admission_limit(run.settings, STEPS)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("policy", "spare"), BOUNDED)
async def test_no_trained_token_is_older_than_max_staleness(redis: Redis, bound: int, policy: str, spare: int) -> None:
    run, trace = await simulate(redis, settings(max_staleness=bound, staleness_policy=policy, over_sampling=spare))
    assert oldest(trace) <= bound
    assert "stale_trained" not in await run.ledger.counters()
    await check_accounts(run, trace)


@pytest.mark.parametrize("policy", ["wait", "drop"])
async def test_the_bound_holds_for_a_heavier_tail(redis: Redis, policy: str) -> None:
    run, trace = await simulate(redis, settings(max_staleness=1, staleness_policy=policy), "pareto")
    assert oldest(trace) <= 1
    await check_accounts(run, trace)


@pytest.mark.parametrize("policy", ["wait", "drop", "train"])
async def test_groups_that_the_filter_drops_return_their_slots(redis: Redis, policy: str) -> None:
    given = settings(max_staleness=1, staleness_policy=policy)
    given = given.model_copy(update={"reward": given.reward.model_copy(update={"group_filter": "nonzero_std"})})
    run, trace = await simulate(redis, given)
    assert (await run.ledger.counters())["dropped:zero_std"] > GROUPS
    assert policy == "train" or oldest(trace) <= 1
    await check_accounts(run, trace)


@pytest.mark.parametrize(("bound", "spare"), [(0, 16), (1, 0), (1, 16)])
async def test_the_policy_train_counts_exactly_what_exceeds_the_bound(redis: Redis, bound: int, spare: int) -> None:
    run, trace = await simulate(redis, settings(max_staleness=bound, over_sampling=spare))
    assert (await run.ledger.counters())["stale_trained"] == beyond(trace, bound) > 0
    assert "dropped" not in await run.ledger.counters()
    await check_accounts(run, trace)


@pytest.mark.parametrize("policy", ["wait", "drop"])
async def test_engines_that_get_versions_late_break_no_promise_silently(redis: Redis, policy: str) -> None:
    late = replace(MACHINES, late_workers=4, late_s=300)
    run, trace = await simulate(redis, settings(max_staleness=1, staleness_policy=policy), machines=late)
    assert (await run.ledger.counters()).get("stale_trained", 0) == beyond(trace, 1)
    assert policy == "wait" or oldest(trace) <= 1
    await check_accounts(run, trace)


async def test_waiting_trains_in_the_order_of_release(redis: Redis) -> None:
    _, trace = await simulate(redis, settings(max_staleness=2, staleness_policy="wait"))
    assert [group for step in trace.steps for group in step.group_ids] == list(range(STEPS * GROUPS))


async def test_a_seed_determines_the_run(redis: Redis) -> None:
    traces: list[RunTrace] = []
    for seed in (1, 1, 2):
        await redis.flushdb()
        traces.append((await simulate(redis, settings(max_staleness=1, staleness_policy="drop"), seed=seed))[1])
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_tokens_carry_the_version_that_was_served_when_they_were_sampled() -> None:
    served = ServedVersions()
    for version, now in enumerate((0.0, 10.0, 12.0, 30.0)):
        served.serve(version, now)
    assert served.spans(8.0, 10, rate=1.0) == [(0, 2), (1, 2), (2, 6)]
    assert served.spans(10.0, 3, rate=1.0) == [(1, 2), (2, 1)]
    assert served.spans(10.0, 5, rate=1.0, late_s=2.0) == [(0, 2), (1, 2), (2, 1)]


def test_lengths_belong_to_the_group_and_have_a_long_tail() -> None:
    tail = LongTail(seed=3)
    lengths = np.concatenate([tail.lengths(group, 4) for group in range(2000)])
    assert (tail.lengths(5, 4) == tail.lengths(5, 4)).all()
    assert lengths.max() > 8 * np.median(lengths)
