"""A branch on a real Redis, fed its parent's groups: the same weights, or others where a setting is another."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from services.gateway.branch_run import begin_counters
from services.trainer import branch as branch_file
from services.trainer.checkpoint import Checkpoints
from services.trainer.reach_step import Recordings
from services.trainer.recorded_run import owner_of
from services.trainer.replay_steps import replay
from services.trainer.serve_run import train_run
from services.trainer.step_ledger import StepLedger
from shared.errors import RunRejected
from shared.logs import Log
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs
from shared.scripts import Ledger
from shared.service import Serving
from shared.settings import Tree, merge
from shared.topology import Keys
from tests.services.trainer.recorded_groups import (
    NotedVersions,
    feed,
    serving,
    small_model,
)
from tests.services.trainer.test_replay import recorded

PER_STEP = 3


class Branches:
    """Branches of run r1, trained in turn."""

    def __init__(self, redis: Redis, home: Path) -> None:
        self.redis, self.home = redis, home
        self.noted: dict[str, NotedVersions] = {}

    async def begin(self, parent: RunSettings, name: str, step: int, changes: Tree | None = None) -> RunRecord:
        """What the gateway does for POST /v1/runs/{run}/branch."""
        origin = {"name": name, "branch": {"run": parent.name, "step": step}}
        tree = merge(parent.model_dump(mode="json"), changes or {}, origin)
        settings, runs = RunSettings.model_validate(tree), Runs(self.redis)
        await runs.create(settings, begin_counters(step, PER_STEP))
        await runs.activate_next()
        await runs.move(name, ("starting",), "running")
        record = await runs.get(name)
        assert record is not None
        return record

    async def train(self, record: RunRecord, group_ids: Iterable[int]) -> None:
        await feed(self.redis, record.run, group_ids, record.settings.kind)
        await train_run(serving(self.redis, record, self.home), self._open)

    def _open(self, serving: Serving, ledger: StepLedger) -> NotedVersions:
        self.noted[serving.run] = NotedVersions(serving, ledger)
        return self.noted[serving.run]

    def weights(self, record: RunRecord, step: int) -> dict[str, torch.Tensor]:
        folder = self.home / "runs" / record.run / "checkpoints"
        return Checkpoints(folder, owner_of(record), 2, Log("trainer")).read(step).state()["weights"]


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


async def record_of(redis: Redis, run: str) -> RunRecord:
    record = await Runs(redis).get(run)
    assert record is not None
    return record


@pytest.mark.parametrize("step", [0, 1, 2, 3])
async def test_an_unchanged_branch_ends_with_its_parents_weights(redis: Redis, tmp_path: Path, step: int) -> None:
    """From the initial model, by training step 1 again, from the checkpoint at 2, and from it by training step 3."""
    parent = await recorded(redis, tmp_path, trainer={"archive": True})
    bench = Branches(redis, tmp_path)
    record = await bench.begin(parent, "b", step)
    await bench.train(record, range(PER_STEP * step, 12))
    theirs = await record_of(redis, "r1")
    assert equal(bench.weights(record, 4), bench.weights(theirs, 4))
    counters = await Ledger(redis, Keys("b")).counters()
    assert (counters["step"], counters["trained"], counters["weight_version"]) == (4, PER_STEP * (4 - step), 4)
    assert sorted(bench.noted["b"].published) == list(range(step, 5))
    assert (await record_of(redis, "b")).state == "finished"


async def test_changed_settings_act_after_the_step_and_not_before(redis: Redis, tmp_path: Path) -> None:
    parent = await recorded(redis, tmp_path, trainer={"archive": True})
    bench, theirs = Branches(redis, tmp_path), await record_of(redis, "r1")
    record = await bench.begin(parent, "b", 1, {"trainer": {"learning_rate": 5e-4, "checkpoint_every": 1}})
    await bench.train(record, range(3, 12))
    same = await bench.begin(parent, "c", 1, {"trainer": {"checkpoint_every": 1}})
    await bench.train(same, range(3, 12))
    assert equal(bench.noted["b"].published[1], bench.noted["c"].published[1])
    assert not equal(bench.weights(record, 4), bench.weights(theirs, 4))
    assert equal(bench.weights(same, 4), bench.weights(theirs, 4))


async def test_a_branch_of_a_branch_and_the_replay_of_a_branch(redis: Redis, tmp_path: Path) -> None:
    parent = await recorded(redis, tmp_path, trainer={"archive": True})
    bench, theirs = Branches(redis, tmp_path), await record_of(redis, "r1")
    first = await bench.begin(parent, "b", 1)
    await bench.train(first, range(3, 12))
    shutil.rmtree(tmp_path / "runs" / "b" / "checkpoints")  # so that all of it comes from the runs before
    second = await bench.begin(first.settings, "c", 3)
    await bench.train(second, range(9, 12))
    assert equal(bench.weights(second, 4), bench.weights(theirs, 4))
    recordings = Recordings(redis, tmp_path / "runs", Log("replay"))
    run = await recordings.find("c")
    assert [one.equal async for one in replay(recordings, run, 4, None, run.settings)] == [True]
    with pytest.raises(RunRejected, match="begins at step 3; its steps up to there are those of run b"):
        _ = [one async for one in replay(recordings, run, 2, 4, run.settings)]


async def test_a_take_up_that_was_killed_is_done_again_and_a_finished_one_is_not(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await recorded(redis, tmp_path, trainer={"archive": True})
    bench, theirs = Branches(redis, tmp_path), await record_of(redis, "r1")
    record = await bench.begin(parent, "b", 1)
    folder = tmp_path / "runs" / "b" / "checkpoints"

    class Killed(BaseException):
        pass

    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if self.name == ".writing_000001":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)  # the checkpoint is written, and not yet in its place
        checkpoints = Checkpoints(folder, owner_of(record), 2, Log("trainer"))
        with pytest.raises(Killed):
            await branch_file.take_up_branch(serving(redis, record, tmp_path), checkpoints)
    assert [path.name for path in folder.iterdir()] == [".writing_000001"]
    checkpoints = Checkpoints(folder, owner_of(record), 2, Log("trainer"))
    await branch_file.take_up_branch(serving(redis, record, tmp_path), checkpoints)
    assert checkpoints.steps() == [1]
    shutil.rmtree(tmp_path / "runs" / "r1" / "archive")  # whoever would take up again now could not
    await bench.train(record, range(3, 12))
    assert equal(bench.weights(record, 4), bench.weights(theirs, 4))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"dtype": "bfloat16"}}, "a branch goes on with the same"),
        ({"model": {"path": "OTHER"}}, "is not the model of the run that b goes on from"),
    ],
)
async def test_a_parent_that_does_not_fit_is_refused(
    redis: Redis, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    parent = await recorded(redis, tmp_path)
    other = small_model(tmp_path / "model").with_name("other")
    shutil.copytree(tmp_path / "model", other)
    _shrink(other)
    tree = {"model": {name: str(other) if value == "OTHER" else value for name, value in changes["model"].items()}}
    record = await Branches(redis, tmp_path).begin(parent, "b", 2, tree)
    with pytest.raises(RunRejected, match=sentence):
        await train_run(serving(redis, record, tmp_path), NotedVersions)


async def test_a_parent_whose_steps_are_gone_is_named(redis: Redis, tmp_path: Path) -> None:
    parent = await recorded(redis, tmp_path)
    bench = Branches(redis, tmp_path)
    record = await bench.begin(parent, "b", 1)
    with pytest.raises(RunRejected, match=r"step 1 of run r1 trained 3 groups.*trainer.archive = true"):
        await bench.train(record, [])


def _shrink(folder: Path) -> None:
    from services.trainer.tiny_model import TinyShape, write_tiny_model

    shutil.rmtree(folder)
    write_tiny_model(folder, 0, TinyShape(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=32, head_dim=8))
