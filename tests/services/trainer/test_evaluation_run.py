"""A run of 0 steps on a real Redis: version 0 is published, its evaluation is waited for, and nothing is trained."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.trainer import evaluation_gate, loop, open_learner
from shared.errors import RunRejected
from shared.runs import Runs
from tests.conftest import until
from tests.services.trainer.bench import KEYS, Bench, until_version
from tests.services.trainer.recorded_groups import NotedVersions

ANSWERED = {"held_out|groups": 2, "held_out|done": 2, "held_out|attempts": 2, "held_out|reward": 1}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.02)
    monkeypatch.setattr(loop, "STOP_GRACE_S", 0.05)
    monkeypatch.setattr(evaluation_gate, "POLL_S", 0.02)


def evaluation(redis: Redis, home: Path, **sections: Any) -> Bench:
    late = {"datasets": ["held_out"], "deadline_s": 0.01}
    trainer = {"steps": 0, "warmup_steps": 5, **sections.pop("trainer", {})}
    return Bench(redis, home, eval=late, data={"datasets": []}, trainer=trainer, **sections)


@contextlib.asynccontextmanager
async def under_way(bench: Bench) -> AsyncIterator["asyncio.Task[None]"]:
    async with asyncio.timeout(20):
        training = asyncio.create_task(bench.train())
        yield training


async def tally(redis: Redis, **fields: int) -> None:
    counts: dict[Any, Any] = {**ANSWERED, **{f"held_out|{name}": count for name, count in fields.items()}}
    await redis.hset(KEYS.evaluation(0), mapping=counts)


async def test_it_publishes_the_initial_model_waits_for_all_answers_and_finishes(redis: Redis, tmp_path: Path) -> None:
    bench = evaluation(redis, tmp_path)
    async with under_way(bench) as training:
        await until_version(redis, 0)
        await tally(redis, done=1)
        for _ in range(5):  # beyond eval.deadline_s, which is for evaluations that others wait for
            await asyncio.wait([training], timeout=0.02)
        assert await bench.state() == "running"
        await tally(redis)
        await training
    assert await bench.state() == "finished"
    assert list(bench.noted[0].published) == [0]
    model = load_file(tmp_path / "model" / "model.safetensors")
    assert all(model[name].equal(tensor) for name, tensor in bench.noted[0].published[0].items())
    assert await bench.records() == []
    assert not (bench.folder / "export").exists()
    assert not [*(bench.folder / "checkpoints").glob("step_*")]


async def test_only_the_policy_is_loaded(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = open_learner.load_policy

    def noting(folder: Path, *others: Any) -> Any:
        loaded.append(folder)
        return load(folder, *others)

    monkeypatch.setattr(open_learner, "load_policy", noting)
    trainer = {
        "advantage": {"estimator": "ppo"},
        "critic": {"path": "/no/such/critic", "warmup_steps": 3},
        "kl": {"loss_coef": 0.1, "reference": "/no/such/reference"},
        "distillation": {"teacher": "/no/such/teacher", "coef": 1.0},
    }
    await tally(redis)
    await asyncio.wait_for(evaluation(redis, tmp_path, trainer=trainer).train(), 20)
    assert loaded == [tmp_path / "model"]


async def test_a_stop_ends_the_wait_for_answers(redis: Redis, tmp_path: Path) -> None:
    bench = evaluation(redis, tmp_path)
    async with under_way(bench) as training:
        await until_version(redis, 0)
        await Runs(redis).move("r1", ("running",), "stopping")
        await training
    assert await bench.state() == "stopped"


async def test_a_stop_ends_the_wait_for_an_engine(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_for_engine(self: NotedVersions, staged: Any, *_: object) -> None:
        await asyncio.get_running_loop().create_future()

    async def stopped() -> bool:
        return await Runs(redis).move("r1", ("running",), "stopping")

    monkeypatch.setattr(NotedVersions, "publish", wait_for_engine)
    bench = evaluation(redis, tmp_path)
    async with under_way(bench) as training:
        await until(stopped)
        await training
    assert await bench.state() == "stopped"


async def test_an_evaluation_of_which_every_row_was_dropped_is_no_result(redis: Redis, tmp_path: Path) -> None:
    await tally(redis, attempts=0, dropped=2, reward=0)
    with pytest.raises(RunRejected, match=r"none of the 2 rows of eval\.datasets was answered, all were dropped"):
        await asyncio.wait_for(evaluation(redis, tmp_path).train(), 20)
    assert gc.get_freeze_count() == 0, "the model of a run that failed can be collected"
