"""The loop on a real Redis, with groups fed at the edge: finishing, stopping, ledger, versions, retention."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.serve_run import train_run
from services.trainer.step_ledger import StepLedger
from shared.messages import StepCommit, StepIntent
from shared.runs import Runs
from shared.scripts import Ledger
from shared.service import Serving
from shared.streams import Stream
from shared.topology import GROUPS, STEPS, Keys
from tests.services.trainer.recorded_groups import (
    NotedVersions,
    feed,
    run_settings,
    serving,
    small_model,
    start_run,
)

KEYS = Keys("r1")


class Bench:
    """One run under training, and the publisher that it opened."""

    def __init__(self, redis: Redis, tmp_path: Path, **sections: Any) -> None:
        self.redis, self.home = redis, tmp_path
        self.settings = run_settings(small_model(tmp_path / "model"), **sections)
        self.noted: list[NotedVersions] = []

    async def train(self) -> None:
        record = await Runs(self.redis).get("r1") or await start_run(self.redis, self.settings)
        await train_run(serving(self.redis, record, self.home), self._open)

    def _open(self, serving: Serving) -> NotedVersions:
        self.noted.append(NotedVersions(serving))
        return self.noted[-1]

    async def records(self) -> list[Any]:
        return [record for _, record in await Stream[Any](self.redis, "r1", STEPS).read()]

    async def state(self) -> str:
        record = await Runs(self.redis).get("r1")
        assert record is not None
        return record.state

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "r1"


async def until_version(redis: Redis, version: int) -> None:
    async with asyncio.timeout(20):
        while (await Ledger(redis, KEYS).counters()).get("weight_version", -1) < version:
            await asyncio.sleep(0.01)


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


async def test_a_commit_names_what_was_measured(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 1})
    await feed(redis, "r1", range(3))
    await bench.train()
    metrics = (await bench.records())[-1].metrics
    assert set(metrics) == {
        "loss", "reward_mean", "reward_std", "advantage_abs_mean", "ratio_mean", "ratio_deviation_max",
        "clip_fraction", "kl", "logprob_diff_mean_abs", "grad_norm", "learning_rate", "groups", "attempts", "tokens",
        "response_tokens", "response_length_mean", "staleness_mean", "staleness_max", "truncated_fraction",
        "seconds_wait", "seconds_fetch", "seconds_train", "seconds_total", "tokens_per_second", "step_skipped",
    }  # fmt: skip
    assert metrics["attempts"] == 12
    assert metrics["grad_norm"] > 0
    assert metrics["tokens"] == metrics["response_tokens"] + 12 * 5


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
    async def wait_for_engine(self: Any, staged: Any) -> None:
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


class Killed(BaseException):
    """The process is gone at this point."""


KILLS = {
    "before the intent": (StepLedger, "intend", "before"),
    "after the intent": (StepLedger, "intend", "after"),
    "after the step, before its commit": (StepLedger, "commit", "before"),
    "after the commit, before the checkpoint": (StepLedger, "commit", "after"),
}


def kill_at(monkeypatch: pytest.MonkeyPatch, where: str, step: int) -> None:
    owner, name, when = KILLS[where]
    original = getattr(owner, name)
    calls: list[int] = []

    async def dying(self: Any, subject: Any, *args: Any) -> None:
        reached = subject.step if isinstance(subject, StepIntent) else subject
        if reached != step or calls:
            await original(self, subject, *args)
            return
        calls.append(reached)
        if when == "after":
            await original(self, subject, *args)
        raise Killed

    monkeypatch.setattr(owner, name, dying)


async def weights_of(bench: Bench) -> dict[str, torch.Tensor]:
    checkpoint = bench.folder / "checkpoints" / "step_000005"
    return {**load_file(checkpoint / "weights.safetensors"), **load_file(checkpoint / "optimizer.safetensors")}


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("where", list(KILLS))
async def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int
) -> None:
    unhurt = Bench(redis, tmp_path / "unhurt", trainer={"steps": 5})
    await feed(redis, "r1", range(15))
    await unhurt.train()
    expected, records = await weights_of(unhurt), await unhurt.records()
    await redis.flushdb()

    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": 5})
    kill_at(monkeypatch, where, step)
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await hurt.train()
    await hurt.train()
    assert await hurt.state() == "finished"
    weights = await weights_of(hurt)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
    assert [identity(r) for r in await hurt.records()] == [identity(r) for r in records]
    assert (await Ledger(redis, KEYS).counters())["trained"] == 15


def identity(record: StepIntent | StepCommit) -> Any:
    """What must be the same in every run: all of an intent, and a commit without its times."""
    if isinstance(record, StepIntent):
        return record
    return record.step, {k: v for k, v in record.metrics.items() if "second" not in k}


async def test_a_damaged_checkpoint_costs_time_and_no_group(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurt = Bench(redis, tmp_path / "unhurt", trainer={"steps": 5})
    await feed(redis, "r1", range(15))
    await unhurt.train()
    expected = await weights_of(unhurt)
    await redis.flushdb()
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": 5})
    kill_at(monkeypatch, "after the intent", 5)
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await hurt.train()
    newest = hurt.folder / "checkpoints" / "step_000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\0\1\2\3")
    await hurt.train()
    for name, tensor in expected.items():
        assert torch.equal((await weights_of(hurt))[name], tensor), name


async def test_a_resumed_trainer_tells_engines_nothing_older_than_they_know(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 5, "checkpoint_every": 50})
    kill_at(monkeypatch, "after the intent", 5)
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await bench.train()
    first = bench.noted[0].published
    await bench.train()
    assert sorted(bench.noted[1].published) == list(range(max(first), 6))
    for name, tensor in first[max(first)].items():
        assert torch.equal(bench.noted[1].published[max(first)][name], tensor)


async def test_a_publication_that_fails_ends_the_trainer_while_it_waits_for_groups(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Any, staged: Any) -> None:
        raise RuntimeError("no rendezvous")

    monkeypatch.setattr(NotedVersions, "publish", fail)
    with pytest.raises(RuntimeError, match="no rendezvous"):
        await asyncio.wait_for(Bench(redis, tmp_path).train(), 20)
