"""Runs of kind dpo on a real Redis: the reference, the metrics, pairs that stay whole, and a killed trainer."""

import math
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import write_tiny_model
from shared.messages import StepCommit
from shared.scripts import Ledger
from tests.services.trainer.bench import KEYS, Bench, Killed, identity, kill_at
from tests.services.trainer.recorded_groups import SMALL, feed

GROUPS = 12


async def trained(redis: Redis, home: Path, **trainer: Any) -> Bench:
    await redis.flushdb()
    bench = Bench(redis, home, kind="dpo", trainer=trainer)
    await feed(redis, "r1", range(GROUPS), "dpo")
    await bench.train()
    return bench


async def commits(bench: Bench) -> list[dict[str, float]]:
    return [record.metrics for record in await bench.records() if isinstance(record, StepCommit)]


async def test_a_run_begins_without_a_preference_and_learns_one(redis: Redis, tmp_path: Path) -> None:
    bench = await trained(redis, tmp_path, epochs=8, learning_rate=1e-2)
    first, *_, last = await commits(bench)
    assert await bench.state() == "finished"
    assert bench.noted == [], "no engine is told of a version"
    assert (first["groups"], first["attempts"]) == (3, 6)
    assert last["preference_margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-5)
    assert last["preference_accuracy"] > 0.7
    assert last["loss"] < math.log(2)
    assert (await Ledger(redis, KEYS).counters())["trained"] == GROUPS


async def test_the_initial_model_is_the_reference_unless_another_one_is_named(redis: Redis, tmp_path: Path) -> None:
    own = (await commits(await trained(redis, tmp_path / "own", steps=1)))[0]
    assert own["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (own["preference_margin"], own["preference_accuracy"]) == (0, 0)
    write_tiny_model(tmp_path / "reference", 7, SMALL)
    other = await trained(redis, tmp_path / "other", steps=1, kl={"reference": str(tmp_path / "reference")})
    assert abs((await commits(other))[0]["preference_margin"]) > 1e-3


async def test_the_weights_do_not_depend_on_how_pairs_are_packed(redis: Redis, tmp_path: Path) -> None:
    alone = await trained(redis, tmp_path / "alone", max_tokens_per_gpu=1)
    together = await trained(redis, tmp_path / "together", max_tokens_per_gpu=10_000)
    one, other = (load_file(bench.folder / "export" / "model.safetensors") for bench in (alone, together))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 1e-3 * tensor.norm(), name


@pytest.mark.parametrize(("name", "call", "after"), [("intend", 2, True), ("commit", 3, False), ("commit", 3, True)])
async def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, after: bool
) -> None:
    calm = await trained(redis, tmp_path / "calm", updates_per_step=3, epochs=2)
    expected = [identity(record) for record in await calm.records()]
    await redis.flushdb()
    hurt = Bench(redis, tmp_path / "hurt", kind="dpo", trainer={"updates_per_step": 3, "epochs": 2})
    await feed(redis, "r1", range(GROUPS), "dpo")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, StepLedger, name, call, after)
        await hurt.train()
    await hurt.train()
    assert [identity(record) for record in await hurt.records()] == expected
    weights = [bench.folder / "export" / "model.safetensors" for bench in (calm, hurt)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
