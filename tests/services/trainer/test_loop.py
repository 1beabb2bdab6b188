"""The loop on a real Redis, with groups fed at the edge: finishing, stopping, ledger, versions, retention."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer import loop
from services.trainer.checkpoint import Checkpoints, Writing
from shared.messages import StepCommit, StepIntent
from shared.runs import Runs
from shared.scripts import Ledger
from shared.topology import GROUPS
from tests.services.trainer.bench import KEYS, Bench, Killed, kill_at, until_version
from tests.services.trainer.recorded_groups import (
    NotedVersions,
    feed,
)


async def test_a_run_trains_publishes_checkpoints_exports_and_finishes(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path)
    training = asyncio.create_task(bench.train())
    await until_version(redis, 0)
    await feed(redis, "r1", range(12))
    await asyncio.wait_for(training, 60)
    records = await bench.records()
    intents = [r for r in records if isinstance(r, StepIntent)]
    commits = [r for r in records if isinstance(r, StepCommit)]
    assert [r.group_ids for r in intents] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [r.weight_version for r in intents] == [0, 1, 2, 3]
    assert [(r.step, r.weight_version) for r in commits] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert sorted(bench.noted[0].published) == [0, 1, 2, 3, 4]
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["step"], counters["trained"], counters["weight_version"]) == (4, 12, 4)
    assert await bench.state() == "finished"
    assert (await redis.xpending(KEYS.stream(GROUPS), "trainer"))["pending"] == 0
    exported = load_file(bench.folder / "export" / "model.safetensors")
    for name, tensor in bench.noted[0].published[4].items():
        assert torch.equal(exported[name], tensor), name
    model = AutoModelForCausalLM.from_pretrained(bench.folder / "export")
    assert model.config._attn_implementation != "sluice_packed"
    assert AutoTokenizer.from_pretrained(bench.folder / "export").eos_token == "<|im_end|>"


async def test_a_run_exports_while_it_goes_on_what_it_publishes_then(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"export_every": 3})
    training = asyncio.create_task(bench.train())
    await until_version(redis, 0)
    await feed(redis, "r1", range(12))
    await asyncio.wait_for(training, 60)
    assert [folder.name for folder in (bench.folder / "exports").glob("step_*")] == ["step_000003"]
    exported = load_file(bench.folder / "exports" / "step_000003" / "model.safetensors")
    for name, tensor in bench.noted[0].published[3].items():
        assert torch.equal(exported[name], tensor), name
    assert AutoTokenizer.from_pretrained(bench.folder / "exports" / "step_000003").eos_token == "<|im_end|>"


async def test_a_trainer_that_is_killed_in_an_export_exports_that_step_when_it_goes_on(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(redis, tmp_path, trainer={"export_every": 2, "checkpoint_every": 2})
    await feed(redis, "r1", range(12))
    kill_at(monkeypatch, loop, "export_model")
    with pytest.raises(Killed):
        await asyncio.wait_for(bench.train(), 60)
    await asyncio.wait_for(bench.train(), 60)
    exports = sorted((bench.folder / "exports").glob("step_*/model.safetensors"))
    assert [file.parent.name for file in exports] == ["step_000002", "step_000004"]


async def test_exports_of_an_earlier_run_of_the_same_name_are_set_aside(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 2, "export_every": 1})
    (bench.folder / "exports" / "step_000009").mkdir(parents=True)
    (bench.folder / "exports" / "OWNER").write_text("1.000000")
    await feed(redis, "r1", range(6))
    await asyncio.wait_for(bench.train(), 60)
    assert sorted(path.name for path in (bench.folder / "exports").glob("step_*")) == ["step_000001", "step_000002"]
    assert [path.name for path in (bench.folder / "exports_1.000000").glob("step_*")] == ["step_000009"]


async def test_a_commit_names_what_was_measured(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 1})
    await feed(redis, "r1", range(3))
    await bench.train()
    metrics = (await bench.records())[-1].metrics
    assert set(metrics) == {
        "loss", "reward_mean", "reward_std", "advantage_abs_mean", "ratio_mean", "ratio_deviation_max",
        "clip_fraction", "kl", "entropy", "logprob_diff_mean_abs", "grad_norm", "learning_rate", "groups", "attempts",
        "tokens", "response_tokens", "trained_tokens", "response_length_mean", "staleness_mean", "staleness_max",
        "staleness_token_mean", "staleness_in_flight_mean", "staleness_in_queue_mean", "truncated_fraction",
        "seconds_wait", "seconds_fetch", "seconds_memory", "seconds_train", "seconds_total", "tokens_per_second",
        "step_skipped", "seconds_publish", "seconds_checkpoint", "seconds_pack", "seconds_estimates", "seconds_update",
        "seconds_optimizer", "tokens_per_second_per_gpu", "steps_skipped", "logprob_diff_staleness_0",
    }  # fmt: skip
    assert metrics["attempts"] == 12
    assert metrics["grad_norm"] > 0
    assert metrics["tokens"] == metrics["response_tokens"] + 12 * 5
    assert metrics["trained_tokens"] == metrics["response_tokens"]


async def test_an_sft_run_trains_without_publishing_and_its_counter_moves(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, kind="sft")
    await feed(redis, "r1", range(12), "sft")
    await bench.train()
    assert await bench.state() == "finished"
    assert bench.noted == []
    assert (await Ledger(redis, KEYS).counters())["weight_version"] == 4
    metrics = (await bench.records())[-1].metrics
    assert metrics["loss"] > 0
    assert "reward_mean" not in metrics


async def test_groups_leave_redis_when_the_oldest_kept_checkpoint_covers_them(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 6})
    await feed(redis, "r1", range(18))
    await bench.train()
    left = [group for group in range(18) if await redis.exists(KEYS.group(group))]
    assert left == [12, 13, 14, 15, 16, 17]
    entries: Any = await redis.xrange(KEYS.stream(GROUPS))
    assert [int(fields[b"g"]) for _, fields in entries] == left
    assert sorted(path.name for path in (bench.folder / "checkpoints").iterdir()) == ["step_000004", "step_000006"]


async def test_a_stop_ends_after_the_step_in_hand_with_a_checkpoint_and_an_export(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path)
    await feed(redis, "r1", range(9))
    training = asyncio.create_task(bench.train())
    await until_version(redis, 3)
    await Runs(redis).move("r1", ("running",), "stopping")
    await asyncio.wait_for(training, 20)
    assert await bench.state() == "stopped"
    assert (bench.folder / "checkpoints" / "step_000003").is_dir()
    assert (bench.folder / "export" / "model.safetensors").is_file()


async def test_the_next_version_waits_for_the_evaluation_of_the_one_before(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, eval={"datasets": ["held_out"], "every": 2}, trainer={"steps": 2})
    await feed(redis, "r1", range(6))
    training = asyncio.create_task(bench.train())
    async with asyncio.timeout(20):
        while len(await bench.records()) < 2:
            await asyncio.sleep(0.01)
    assert (await Ledger(redis, KEYS).counters())["weight_version"] == 0
    tally: dict[Any, Any] = {"held_out|groups": 1, "held_out|done": 1}
    await redis.hset(KEYS.evaluation(0), mapping=tally)
    await until_version(redis, 2)
    assert await bench.state() == "running"
    await redis.hset(KEYS.evaluation(2), mapping=tally)
    await asyncio.wait_for(training, 20)
    assert await bench.state() == "finished"


async def test_an_evaluation_beyond_its_deadline_does_not_hold_the_run(redis: Redis, tmp_path: Path) -> None:
    late = {"datasets": ["held_out"], "deadline_s": 0.2}
    bench = Bench(redis, tmp_path, eval=late, trainer={"steps": 1})
    await feed(redis, "r1", range(3))
    await asyncio.wait_for(bench.train(), 20)
    assert await bench.state() == "finished"


async def test_a_run_without_any_engine_can_be_stopped(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_for_engine(self: Any, staged: Any, *_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(NotedVersions, "publish", wait_for_engine)
    monkeypatch.setattr("services.trainer.loop.STOP_GRACE_S", 0.05)
    bench = Bench(redis, tmp_path)
    training = asyncio.create_task(bench.train())
    async with asyncio.timeout(20):
        while await Runs(redis).get("r1") is None or not await Runs(redis).move("r1", ("running",), "stopping"):
            await asyncio.sleep(0.01)
    await asyncio.wait_for(training, 20)
    assert await bench.state() == "stopped"


async def test_a_checkpoint_that_cannot_be_written_ends_the_trainer_while_it_waits_for_groups(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Checkpoints, writing: Writing) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Checkpoints, "finish", fail)
    await feed(redis, "r1", range(6))
    with pytest.raises(OSError, match="no space left"):
        await asyncio.wait_for(Bench(redis, tmp_path).train(), 20)


async def test_a_publication_that_fails_ends_the_trainer_while_it_waits_for_groups(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Any, staged: Any, *_: object) -> None:
        raise RuntimeError("no rendezvous")

    monkeypatch.setattr(NotedVersions, "publish", fail)
    with pytest.raises(RuntimeError, match="no rendezvous"):
        await asyncio.wait_for(Bench(redis, tmp_path).train(), 20)
