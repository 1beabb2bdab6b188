"""A run whose models leave their device between steps ends like one whose models stay, killed trainers included."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from services.trainer.ask_engines import AskEngines
from services.trainer.compute_thread import ComputeThread
from services.trainer.host_memory import HostMemory
from services.trainer.memory_turns import MemoryTurns, ask_for_memory
from services.trainer.ranks import OneRank
from services.trainer.step_ledger import StepLedger
from services.trainer.team import Team
from shared.errors import RunRejected
from shared.messages import MemoryTurn
from shared.streams import Stream
from shared.topology import MEMORY
from tests.services.trainer.bench import Bench, Killed, Outcome, kill_at, outcome
from tests.services.trainer.recorded_groups import feed, run_settings, serving, small_model, start_run

STEPS, GROUPS = 4, 12
TURNS = {"transport": "ipc", "memory": "turns", "enrol_deadline_s": 0.1}
EVERY_MODEL = {"steps": STEPS, "advantage": {"estimator": "ppo"}, "kl": {"reward_coef": 0.1, "refresh_every": 2}}


def bench(redis: Redis, home: Path, weights: dict[str, Any] | None = None, **lora: Any) -> Bench:
    trainer = {"steps": STEPS} if lora else EVERY_MODEL
    return Bench(redis, home, trainer=trainer, weights=weights or {}, lora=lora)


async def kept(redis: Redis, home: Path, **lora: Any) -> Outcome:
    await feed(redis, "r1", range(GROUPS))
    unhurt = bench(redis, home, **lora)
    await unhurt.train()
    expected = await outcome(unhurt)
    await redis.flushdb()
    await feed(redis, "r1", range(GROUPS))
    return expected


async def turns(redis: Redis) -> list[str]:
    """Whose turn it was, one after the other."""
    return [turn.holder for _, turn in await Stream[MemoryTurn](redis, "r1", MEMORY).read()]


@pytest.mark.parametrize("lora", [{}, {"rank": 4}], ids=["policy, critic and reference", "adapters"])
async def test_models_train_to_the_same_bits_in_turns(redis: Redis, tmp_path: Path, lora: dict[str, Any]) -> None:
    expected = await kept(redis, tmp_path / "kept", **lora)
    in_turns = bench(redis, tmp_path / "turns", TURNS, **lora)
    await in_turns.train()
    (await outcome(in_turns)).must_equal(expected)
    assert await turns(redis) == ["trainer", "engines"] * (STEPS + 1)  # the first before anything is loaded


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [(AskEngines, "ask", 2, True), (HostMemory, "come_back", 3, True), (HostMemory, "leave", 2, False)],
    ids=["it has asked", "it has its models back", "it has trained"],
)
async def test_a_trainer_killed_in_its_turn_is_followed_by_one_that_asks_before_it_loads(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool
) -> None:
    expected = await kept(redis, tmp_path / "kept")
    hurt = bench(redis, tmp_path / "hurt", TURNS)
    kill_at(monkeypatch, owner, name, call, after)
    with pytest.raises(Killed):
        await hurt.train()
    killed_in = await turns(redis)
    assert killed_in[-1] == "trainer"
    await hurt.train()
    (await outcome(hurt)).must_equal(expected)
    assert (await turns(redis))[len(killed_in)] == "trainer"


async def test_a_trainer_of_several_processes_is_refused_with_what_to_write(redis: Redis, tmp_path: Path) -> None:
    settings = run_settings(small_model(tmp_path / "model"), weights=TURNS)
    record = await start_run(redis, settings)
    team = Team(replace(OneRank(), size=2))
    with pytest.raises(RunRejected, match=r'one process, and this one has 2; start one .*memory = "kept"'):
        await ask_for_memory(serving(redis, record, tmp_path), StepLedger(redis, "r1"), team)


async def test_memory_is_taken_once_and_given_once(redis: Redis, tmp_path: Path) -> None:
    record = await start_run(redis, run_settings(small_model(tmp_path / "model"), weights=TURNS))
    ledger, compute, weight = StepLedger(redis, "r1"), ComputeThread(1), torch.ones(3)
    asked = await ask_for_memory(serving(redis, record, tmp_path), ledger, Team())
    assert asked is not None
    memory = MemoryTurns(asked, HostMemory(lambda: [weight], weight.device), weight.device, compute)
    for call in (memory.take, memory.give, memory.give, memory.take, memory.take):
        await asyncio.wait_for(call(), 5)
    compute.close()
    assert await turns(redis) == ["trainer", "engines", "trainer"]
