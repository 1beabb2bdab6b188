"""Feeder and trainer on a real Redis where rollout.max_stored_mib is smaller than what the run would keep there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.gateway.dataset_store import DatasetStore
from services.gateway.feeder import Feeder
from services.gateway.ledger.describe_ledger import describe_ledger
from shared.joining import complete
from shared.messages import Event, GroupReady, Prompt
from shared.runs import Runs
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import PROMPTS
from tests.conftest import until
from tests.services.gateway.gateway_cases import LOG, add, announce_all, sums
from tests.services.trainer.bench import KEYS, Bench
from tests.services.trainer.recorded_groups import rollouts

STEPS, GROUPS_PER_STEP = 5, 3
TEXT = "x" * 100_000
"""Three groups of four such attempts take more than the smallest limit, which is one MiB."""


class Players:
    """Rollout and reward in one: every prompt becomes a group at once, but some are dropped."""

    def __init__(self, redis: Redis, drops: set[int], dead: set[int]) -> None:
        self._prompts: Stream[Prompt] = Stream(redis, "r1", PROMPTS, "w")
        self._ledger, self._drops, self._dead = Ledger(redis, KEYS), drops, dead
        self.most_bytes = 0

    async def play(self) -> None:
        await self._prompts.open()
        while True:
            for message in await self._prompts.receive(64, 0.1):
                await self._settle(message.body.group_id)
                await message.ack()
            self.most_bytes = max(self.most_bytes, (await self._ledger.counters()).get("stored_bytes", 0))

    async def _settle(self, group_id: int) -> None:
        attempts = [replace(r, text=TEXT) for r in rollouts(group_id)]
        await self._ledger.join([complete(one) for one in attempts])
        reason = "dead" if group_id in self._dead else "filter" if group_id in self._drops else ""
        if reason:
            event = Event(0.0, "reward", "dropped", {"reason": reason})
            await self._ledger.drop(group_id, "train", reason, event, None)
            return
        lengths = [len(r.prompt_ids) + len(r.token_ids) for r in attempts]
        rewards = [r.reward or 0.0 for r in attempts]
        version = attempts[0].weight_versions[0][0]
        ready = GroupReady(group_id, attempts[0].kind, "sums", group_id, lengths, rewards, version, version)
        await self._ledger.emit((ready, sum(lengths)))


@contextlib.asynccontextmanager
async def running(bench: Bench, store: DatasetStore, players: Players) -> AsyncIterator["asyncio.Task[None]"]:
    await add(store, "sums", sums(50))
    training = asyncio.create_task(bench.train())
    beside = [asyncio.create_task(Feeder(bench.redis, store, LOG).feed()), asyncio.create_task(players.play())]
    beside.append(asyncio.create_task(_keep_announced(bench.redis)))
    try:
        yield training
    finally:
        await end(training, *beside)


async def _keep_announced(redis: Redis) -> None:
    while True:
        await announce_all(redis)
        await asyncio.sleep(1)


def bench_of(redis: Redis, folder: Path, keep: int = 2, **rollout: Any) -> Bench:
    trainer = {"steps": STEPS, "checkpoint_every": 50, "keep_checkpoints": keep}
    rollout = {"max_stored_mib": 1, "max_staleness": 1, "groups_per_step": GROUPS_PER_STEP, **rollout}
    return Bench(redis, folder, rollout=rollout, trainer=trainer)


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


async def balanced(redis: Redis, home: Path) -> list[str]:
    record = await Runs(redis).get("r1")
    assert record is not None
    return (await describe_ledger(redis, record, home / "runs", verify=True)).problems


@pytest.mark.parametrize("keep", [1, 2])
async def test_a_trainer_that_waits_for_groups_makes_room_with_an_early_checkpoint(
    redis: Redis, tmp_path: Path, store: DatasetStore, keep: int
) -> None:
    players = Players(redis, drops=set(), dead=set())
    bench = bench_of(redis, tmp_path, keep)
    async with running(bench, store, players) as training:
        await asyncio.wait_for(training, 60)
    assert await bench.state() == "finished"
    assert len(await bench.records()) == 2 * STEPS
    assert await balanced(redis, tmp_path) == []
    step_bytes = 4 * (len(TEXT) + 500) * GROUPS_PER_STEP
    assert 2**20 < players.most_bytes <= 2**20 + 2 * step_bytes


async def test_groups_that_are_ready_and_too_few_for_a_step_do_not_hold_the_rest_of_it_back(
    redis: Redis, tmp_path: Path, store: DatasetStore
) -> None:
    bench = bench_of(redis, tmp_path, groups_per_step=4, max_staleness=0)
    async with running(bench, store, Players(redis, drops={0, 5, 9}, dead=set())) as training:
        await asyncio.wait_for(training, 60)
    assert await bench.state() == "finished"
    assert (await Ledger(redis, KEYS).counters())["dropped"] == 3
    assert await balanced(redis, tmp_path) == []


async def test_dead_groups_hold_a_full_run_back_until_a_person_decides(
    redis: Redis, tmp_path: Path, store: DatasetStore
) -> None:
    bench = bench_of(redis, tmp_path)
    ledger = Ledger(redis, KEYS)
    async with running(bench, store, Players(redis, drops=set(), dead={0, 1, 2})) as training:

        async def waits() -> bool:
            counts = await ledger.counters()
            return counts.get("forgotten_step", 0) == counts.get("step", 0) > 0 and bool(counts.get("dropped"))

        await until(waits, 30)
        for group_id in (0, 1, 2):
            await ledger.discard(group_id, [])
        await asyncio.wait_for(training, 60)
    assert await bench.state() == "finished"
    assert await balanced(redis, tmp_path) == []
