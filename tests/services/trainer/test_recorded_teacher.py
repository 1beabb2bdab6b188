"""What a served teacher said is trained as what the same teacher says in the trainer, and again without any server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from services.trainer.frozen_model import FrozenModel
from services.trainer.load_model import load_policy
from services.trainer.packing import pack
from services.trainer.ranks import OneRank
from services.trainer.reach_step import Recordings
from services.trainer.replay_steps import StepComparison, changed_settings, replay
from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import write_tiny_model
from services.trainer.training_batch import training_batch
from shared.errors import RunRejected, SettingsError
from shared.logs import Log
from shared.messages import Rollout
from shared.settings import Tree
from tests.services.trainer.bench import Bench, Killed, kill_at, outcome
from tests.services.trainer.recorded_groups import SMALL, feed, rollouts

NOBODY = "http://127.0.0.1:9"
"""Where no server is: training a step asks none."""
SERVED = {"distillation": {"url": NOBODY, "coef": 0.5}}
Judge = Callable[[Rollout], Rollout]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_model(folder, 7, SMALL)
    return folder


@pytest.fixture(scope="module")
def judge(teacher: Path) -> Judge:
    """Adds to an attempt what the teacher says of its tokens."""
    device = torch.device("cpu")
    model = FrozenModel(load_policy(teacher, False, 1.0, device), torch.float32, OneRank(), offload=False)

    def judged(one: Rollout) -> Rollout:
        (packed,) = pack(training_batch([one]), 10**6)
        column = torch.zeros(len(one.prompt_ids) + len(one.token_ids))
        column[packed.predicted] = model.predict([packed])[0].logprobs
        return replace(one, teacher_logprobs=column[len(one.prompt_ids) :].numpy())

    return judged


async def trained(redis: Redis, home: Path, judge: Judge | None, **trainer: Any) -> Bench:
    bench = Bench(redis, home, trainer={"archive": True, **trainer})
    await feed(redis, "r1", range(12), **({"change": judge} if judge else {}))
    await bench.train()
    return bench


def test_what_was_said_is_laid_out_beside_the_tokens_and_only_where_all_were_judged(judge: Judge) -> None:
    first, second = rollouts(0)[:2]
    said = replace(judge(second), loss_mask=[(1, 1), (0, len(second.token_ids) - 1)])
    column = training_batch([judge(first), said]).teacher_logprobs
    assert column is not None
    prompt = [0.0] * len(first.prompt_ids)
    expected = [*prompt, *judge(first).teacher_logprobs, *prompt, said.teacher_logprobs[0]]  # pyright: ignore
    assert column.tolist() == [*map(float, expected), *[0.0] * (len(second.token_ids) - 1)]
    assert training_batch([judge(first), second]).teacher_logprobs is None


async def test_a_run_learns_from_what_was_said_as_from_the_same_teacher_in_the_trainer(
    redis: Redis, tmp_path: Path, teacher: Path, judge: Judge
) -> None:
    own = {"distillation": {"teacher": str(teacher), "coef": 0.5}}
    asked = await outcome(await trained(redis, tmp_path / "asked", None, **own))
    await redis.flushdb()
    told = await outcome(await trained(redis, tmp_path / "told", judge, **SERVED))
    await redis.flushdb()
    untaught = await outcome(await trained(redis, tmp_path / "untaught", judge))
    for (_, found), (_, wanted) in zip(commits(told.records), commits(asked.records), strict=True):
        assert wanted["teacher_kl"] != 0
        assert found["teacher_kl"] == pytest.approx(wanted["teacher_kl"], abs=1e-5)
    distance = {name: far(told.tensors[name], tensor) for name, tensor in asked.tensors.items() if "weights/" in name}
    assert max(distance.values()) < 1e-4
    assert max(far(untaught.tensors[name], told.tensors[name]) for name in distance) > 1e-3


async def test_a_killed_trainer_trains_the_step_again_from_what_was_said_without_the_server(
    redis: Redis, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await outcome(await trained(redis, tmp_path / "unhurt", judge, **SERVED))
    await redis.flushdb()
    hurt = Bench(redis, tmp_path / "hurt", trainer={"archive": True, **SERVED})
    await feed(redis, "r1", range(12), change=judge)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, StepLedger, "commit", call=4)
        await hurt.train()
    await hurt.train()
    (await outcome(hurt)).must_equal(expected)


async def replayed(home: Path, changes: Tree | None = None) -> list[StepComparison]:
    """All steps, from archive and checkpoints alone."""
    recordings = Recordings(None, home / "runs", Log("replay"))
    run = await recordings.find("r1")
    settings = changed_settings(run, changes or {})
    return [comparison async for comparison in replay(recordings, run, 1, 4, settings)]


async def test_a_replay_needs_neither_the_server_nor_redis(redis: Redis, tmp_path: Path, judge: Judge) -> None:
    await trained(redis, tmp_path, judge, **SERVED)
    found = await replayed(tmp_path)
    assert [(one.step, one.source, one.equal) for one in found] == [(n, "archive", True) for n in (1, 2, 3, 4)]
    assert all(one.metrics["teacher_kl"][0] == one.metrics["teacher_kl"][1] for one in found)
    (first, *_) = await replayed(tmp_path, {"trainer": {"distillation": {"coef": 0.7}}})
    assert "loss" in first.differs
    with pytest.raises(SettingsError, match=r"trainer.distillation.deadline_s changes nothing about training"):
        await replayed(tmp_path, {"trainer": {"distillation": {"deadline_s": 3}}})


async def test_a_replay_with_a_server_that_was_never_asked_says_what_to_write_instead(
    redis: Redis, tmp_path: Path, teacher: Path
) -> None:
    await trained(redis, tmp_path, None)
    with pytest.raises(RunRejected, match=r"recorded without; write trainer.distillation.teacher, the folder"):
        await replayed(tmp_path, {"trainer": SERVED})
    taught = {"distillation": {"teacher": str(teacher), "coef": 0.5}}
    assert "teacher_kl" in (await replayed(tmp_path, {"trainer": taught}))[0].metrics


def commits(records: list[Any]) -> list[tuple[int, dict[str, float]]]:
    return [record for record in records if isinstance(record, tuple)]


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max())
