"""A run under torchrun, as a deployment starts it: the weights of one process, also when ranks are killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from benchmarks.free_ports import free_port
from deploy.process import Child, birth, descendants, start
from deploy.services import services_of, settings_environment
from services.trainer.step_ledger import StepLedger
from shared.deployment import Deployment
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.topology import Keys
from tests.conftest import until
from tests.services.trainer.bench import Bench
from tests.services.trainer.ranks.test_invariance import Tensors, difference
from tests.services.trainer.recorded_groups import feed, run_settings, small_model, start_run

STEPS, GROUPS_PER_STEP, RANKS = 20, 5, 2
KILLS = ((1, 4), (0, 11))
"""(rank, the step after which it is killed)."""
START_S, RUN_S, END_S = 120, 120, 60
KEYS = Keys("r1")
SECTIONS: dict[str, Any] = {
    "rollout": {"groups_per_step": GROUPS_PER_STEP},
    "trainer": {"steps": STEPS, "checkpoint_every": 3},
}


class RankProcesses:
    """One torchrun and its ranks."""

    def __init__(self, child: Child, log: Path) -> None:
        self._child, self._log = child, log
        self.family: dict[int, str] = {}

    async def until_step(self, redis: Redis, step: int) -> None:
        async def reached() -> bool:
            self._note()
            return (await Ledger(redis, KEYS).counters()).get("step", 0) >= step

        await until(reached, START_S)

    async def until_finished(self, redis: Redis) -> None:
        async def finished() -> bool:
            self._note()
            record = await Runs(redis).get("r1")
            return record is not None and record.state == "finished"

        await until(finished, START_S + RUN_S)

    def kill_rank(self, rank: int) -> None:
        mark = f"RANK={rank}".encode()
        (pid,) = [pid for pid in self.family if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        os.kill(pid, signal.SIGKILL)

    def end_by_sigterm(self) -> None:
        os.kill(self._child.pid, signal.SIGTERM)

    async def ended(self) -> int:
        """The exit code, once every process is gone by itself."""
        code = await asyncio.wait_for(self._child.wait(), END_S)

        async def gone() -> bool:
            return not any(birth(pid) == born for pid, born in self.family.items())

        await until(gone, END_S)
        return code

    async def stop(self) -> None:
        """Whatever is left."""
        self._note()
        await self._child.stop(0)
        self._child.kill_rest(self.family)

    def _note(self) -> None:
        assert self._child.running, f"torchrun ended by itself: {self._log.read_text()[-3000:]}"
        self.family |= descendants(self._child.pid)


@contextlib.asynccontextmanager
async def rank_processes(redis_url: str, home: Path) -> AsyncGenerator[RankProcesses]:
    tree = {
        "paths": {"home": str(home)},
        "redis": {"url": redis_url},
        "trainer": {"processes": RANKS},
        "health": {"trainer_port": free_port()},
    }
    deployment = Deployment.model_validate(tree)
    (service,) = [service for service in services_of(deployment) if service.name == "trainer"]
    environment = {**settings_environment(deployment), **service.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    log = home / "trainer.log"
    processes = RankProcesses(await start(service.command, environment, log), log)
    try:
        yield processes
    finally:
        with contextlib.suppress(AssertionError):
            await processes.stop()


class Fetches:
    """Which connection asked Redis for which attempt."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.connections: dict[int, set[str]] = {}
        """Group -> ports that asked for attempts of it."""

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        async with self._redis.monitor() as monitor:
            watching = asyncio.create_task(self._watch(monitor))
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, monitor: Any) -> None:
        groups = {KEYS.group(group): group for group in range(STEPS * GROUPS_PER_STEP)}
        while True:
            said = await monitor.next_command()
            name, *words = str(said["command"]).split(" ")
            assert name.upper() != "HGETALL" or words[0] not in groups, "a whole group was fetched"
            if name.upper() == "HMGET" and words[0] in groups:
                group = groups[words[0]]
                self.attempts.update((group, int(word)) for word in words[1:])
                self.connections.setdefault(group, set()).add(str(said["client_port"]))


async def feed_run(redis: Redis, settings: RunSettings) -> None:
    await redis.flushdb()
    await start_run(redis, settings)
    await feed(redis, "r1", range(STEPS * GROUPS_PER_STEP), "sft")


def exported(home: Path) -> Tensors:
    return load_file(home / "runs" / "r1" / "export" / "model.safetensors")


def must_be_near(found: Tensors, expected: Tensors, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    differences = {name: difference(found[name], expected[name]) for name in expected}
    assert max(differences.values()) < tolerance, differences


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_processes_train_what_one_does_and_a_killed_rank_changes_nothing(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    settings = run_settings(small_model(tmp_path / "model"), "sft", **SECTIONS)
    await feed_run(redis, settings)
    await Bench(redis, tmp_path, kind="sft", **SECTIONS).train()
    one = exported(tmp_path)

    await feed_run(redis, settings)
    fetches = Fetches(redis)
    (tmp_path / "two").mkdir()
    async with fetches.watched(), rank_processes(redis_url, tmp_path / "two") as processes:
        await processes.until_finished(redis)
        processes.end_by_sigterm()
        await processes.ended()
    two = exported(tmp_path / "two")
    must_be_near(two, one, 1e-5)
    assert fetches.attempts == Counter({(group, 0): 1 for group in range(STEPS * GROUPS_PER_STEP)})
    for intent in await StepLedger(redis, "r1").intents(after=0):
        assert len(set.union(*(fetches.connections[group] for group in intent.group_ids))) == RANKS

    await feed_run(redis, settings)
    (tmp_path / "killed").mkdir()
    for rank, step in KILLS:
        async with rank_processes(redis_url, tmp_path / "killed") as processes:
            await processes.until_step(redis, step)
            processes.kill_rank(rank)
            assert await processes.ended() != 0
            assert step <= (await Ledger(redis, KEYS).counters())["step"] < STEPS
            assert len(processes.family) >= RANKS
    async with rank_processes(redis_url, tmp_path / "killed") as processes:
        await processes.until_finished(redis)
    must_be_near(exported(tmp_path / "killed"), two, 1e-6)
    assert (await Ledger(redis, KEYS).counters())["trained"] == STEPS * GROUPS_PER_STEP
    assert all(torch.isfinite(tensor).all() for tensor in two.values())


@pytest.mark.slow
async def test_a_run_that_no_rank_can_train_fails_with_a_sentence_and_all_processes_begin_anew(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    await feed_run(redis, run_settings(tmp_path / "nowhere", "sft", **SECTIONS))
    async with rank_processes(redis_url, tmp_path) as processes:

        async def failed() -> bool:
            record = await Runs(redis).get("r1")
            return record is not None and record.state == "failed"

        await until(failed, START_S)
        assert await processes.ended() != 0
    record = await Runs(redis).get("r1")
    assert record is not None
    assert record.reason.startswith("trainer")
    assert record.reason.endswith("is not a folder; give the folder of a Hugging Face checkpoint")
