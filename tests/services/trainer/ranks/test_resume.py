"""A checkpoint of two ranks -> the same training on one, two and four; one that does not fit is refused by name."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.checkpoint import MANIFEST, Checkpoints
from services.trainer.learner import Learner
from services.trainer.open_learner import open_learner
from services.trainer.ranks import Ranks
from shared.errors import RunRejected
from shared.logs import Log
from shared.run_settings import RunSettings
from tests.services.trainer.ranks.invariant_cases import Case
from tests.services.trainer.ranks.spawned_ranks import SpawnedRanks
from tests.services.trainer.ranks.test_invariance import Tensors, gathered
from tests.services.trainer.ranks.uneven_steps import UnevenStep, models, uneven_steps

DEADLINE_S = 120
SAVED, LAST = (2, 4), 7
EVERY_MODEL = Case(
    "kl_reference",
    {
        "advantage": {"estimator": "ppo"},
        "critic": {"learning_rate": 1e-3},
        "kl": {"loss_coef": 0.1, "refresh_every": 3},
        "updates_per_step": 2,
        "checkpoint_every": 2,
    },
    models={"kl.reference": "reference", "critic.path": "critic"},
)
"""Policy, critic and a reference that moves: everything that a checkpoint can hold."""


@dataclass(frozen=True)
class Trained:
    """What two ranks made."""

    settings: RunSettings
    steps: list[UnevenStep]
    folder: Path
    """Of the checkpoints at SAVED."""
    state: Tensors
    """At the last of them."""
    curve: list[dict[str, float]]
    """Metrics of the steps after it."""


Resumed = tuple[Tensors, list[dict[str, float]]]
"""The state at the last checkpoint, and the metrics of the steps after it."""
BySize = dict[int, Resumed]


def checkpoints(folder: Path, ranks: Ranks) -> Checkpoints:
    return Checkpoints(folder, "a", 5, Log("trainer"), ranks)


def train_and_save(settings: RunSettings, steps: list[UnevenStep], folder: Path, ranks: Ranks) -> Resumed:
    learner, kept = open_learner(settings, torch.device("cpu"), ranks), checkpoints(folder, ranks)
    curve: list[dict[str, float]] = []
    state: Tensors = {}
    for step in steps:
        curve.append(step.train(learner, settings, ranks, turned=False))
        if step.intent.step in SAVED:
            kept.save(step.intent.step, learner.state())
            state = gathered("saved", learner.state())
    return state, curve[SAVED[-1] :]


def resume(settings: RunSettings, steps: list[UnevenStep], folder: Path, ranks: Ranks) -> Resumed:
    learner = open_learner(settings, torch.device("cpu"), ranks)
    step = take_up(learner, checkpoints(folder, ranks), ranks)
    state = gathered("saved", learner.state())
    return state, [one.train(learner, settings, ranks, turned=False) for one in steps[step:]]


def take_up(learner: Learner, kept: Checkpoints, ranks: Ranks) -> int:
    """As the trainer does it: rank 0 finds the newest whole one, and all read it."""
    newest = kept.newest() if ranks.rank == 0 else None
    step = int(ranks.maximum(torch.tensor(newest.step if newest else 0)))
    state = learner.state()
    kept.fill(kept.at(step), state)
    learner.load_state(state)
    return step


def refusal(settings: RunSettings, folder: Path, ranks: Ranks) -> str:
    """What every rank says of the newest checkpoint."""
    learner = open_learner(settings, torch.device("cpu"), ranks)
    try:
        return f"taken up at step {take_up(learner, checkpoints(folder, ranks), ranks)}"
    except RunRejected as error:
        return str(error)


def save_other(settings: RunSettings, folder: Path, change: Callable[[Any], None], ranks: Ranks) -> None:
    """A whole checkpoint at step 4 of a state that is not quite the model's."""
    learner = open_learner(settings, torch.device("cpu"), ranks)
    state = learner.state()
    change(state)
    checkpoints(folder, ranks).save(SAVED[-1], state)


def without_norm(state: Any) -> None:
    del state["weights"]["core.model.norm.weight"]


def with_bias(state: Any) -> None:
    state["critic_weights"]["head.more"] = torch.zeros(3)


def with_longer_norm(state: Any) -> None:
    state["weights"]["core.model.norm.weight"] = torch.zeros(7)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("resume")
    folders = models(home)
    settings = EVERY_MODEL.settings(folders, 64)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": request.param})})
    steps, folder = uneven_steps(folders["policy"], "rl", LAST), home / "checkpoints"
    ranks = SpawnedRanks(2, partial(train_and_save, settings, steps, folder), home / "ranks")
    state, curve = ranks.results(DEADLINE_S)[0]
    return Trained(settings, steps, folder, state, curve)


@pytest.fixture(scope="module")
def resumed(trained: Trained) -> Iterator[BySize]:
    """Number of ranks -> what they made of the checkpoint, which each size has a copy of."""
    worlds: dict[int, SpawnedRanks] = {}
    try:
        for size in (1, 2, 4):
            copy = shutil.copytree(trained.folder, trained.folder.with_name(f"copy_{size}"))
            task = partial(resume, trained.settings, trained.steps, copy)
            worlds[size] = SpawnedRanks(size, task, trained.folder.with_name(f"ranks_{size}"))
        yield {size: world.results(DEADLINE_S)[0] for size, world in worlds.items()}
    finally:
        for world in worlds.values():
            world.end()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks_takes_up_the_very_state(trained: Trained, resumed: BySize, size: int) -> None:
    state, _ = resumed[size]
    assert state.keys() == trained.state.keys()
    for name, tensor in trained.state.items():
        # one rank keeps a reference in the precision that it is asked in
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name
        assert state[name].dtype == tensor.dtype or name.startswith("saved: reference/")


def timeless(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in step.items() if "seconds" not in name} for step in curve]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_curve_goes_on_as_on_two_ranks(trained: Trained, resumed: BySize, size: int) -> None:
    _, curve = resumed[size]
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[trained.settings.model.dtype]
    assert len(curve) == len(trained.curve) == LAST - SAVED[-1]
    for found, expected in zip(timeless(curve), timeless(trained.curve), strict=True):
        assert found == (expected if size == 2 else pytest.approx(expected, rel=tolerance, abs=tolerance))


def flip_a_byte(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte of a shard is another": flip_a_byte,
    "a shard is missing": lambda checkpoint: max(checkpoint.glob("*.distcp")).unlink(),
    "a shard is cut short": lambda checkpoint: max(checkpoint.glob("*.distcp")).write_bytes(b"abc"),
    "the table of tensors is missing": lambda checkpoint: (checkpoint / ".metadata").unlink(),
    "the manifest is missing": lambda checkpoint: (checkpoint / MANIFEST).unlink(),
    "the manifest is cut short": lambda checkpoint: (checkpoint / MANIFEST).write_text('{"format": 2, "st'),
    "the manifest is no table": lambda checkpoint: (checkpoint / MANIFEST).write_text("[]"),
    "the manifest names no files": lambda checkpoint: (checkpoint / MANIFEST).write_text('{"format": 2, "files": 3}'),
}


def damaged_runs(settings: RunSettings, folders: list[Path], ranks: Ranks) -> list[str]:
    return [refusal(settings, folder, ranks) for folder in folders]


@pytest.mark.parametrize("trained", ["float32"], indirect=True)
def test_a_damaged_checkpoint_is_set_aside_by_name_and_two_ranks_take_the_one_before(
    trained: Trained, tmp_path: Path
) -> None:
    folders: list[Path] = []
    for number, damage in enumerate(DAMAGES.values()):
        folders.append(Path(shutil.copytree(trained.folder, tmp_path / f"damaged_{number}")))
        damage(folders[-1] / "step_000004")
    ranks = SpawnedRanks(2, partial(damaged_runs, trained.settings, folders), tmp_path / "ranks")
    for said in ranks.results(DEADLINE_S):
        assert said == ["taken up at step 2"] * len(DAMAGES)
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["damaged_step_000004", "step_000002"]


def refused_runs(settings: RunSettings, folders: dict[Path, Any], ranks: Ranks) -> list[str]:
    for folder, change in folders.items():
        save_other(settings, folder, change, ranks)
    return [refusal(settings, folder, ranks) for folder in folders]


@pytest.mark.parametrize("trained", ["float32"], indirect=True)
def test_a_checkpoint_of_other_tensors_is_refused_by_name_on_every_rank_and_the_one_before_is_offered(
    trained: Trained, tmp_path: Path
) -> None:
    changes = (without_norm, with_bias, with_longer_norm)
    folders = {Path(shutil.copytree(trained.folder, tmp_path / f"other_{i}")): one for i, one in enumerate(changes)}
    ranks = SpawnedRanks(2, partial(refused_runs, trained.settings, folders), tmp_path / "ranks")
    for said in ranks.results(DEADLINE_S):
        assert "step_000004 misses tensor weights/core.model.norm.weight" in said[0]
        assert "step_000004 holds the unknown tensor critic_weights/head.more" in said[1]
        assert "weights/core.model.norm.weight" in said[2]
        assert "is [7], the model's [34]" in said[2]
        assert all(one.endswith("remove the folder, and the run goes on from step 2") for one in said)


def alone_then_together(settings: RunSettings, folder: Path, ranks: Ranks) -> list[Any]:
    """Rank 0 writes a state that it holds alone, as for a branch; then all read it."""
    learner = open_learner(settings, torch.device("cpu"), ranks)
    if ranks.rank == 0:
        whole_model = open_learner(settings, torch.device("cpu"))
        checkpoints(folder, ranks).of_one_process().save(1, whole_model.state())
    step = take_up(learner, checkpoints(folder, ranks), ranks)
    return [step, gathered("saved", learner.state())]


@pytest.mark.parametrize("trained", ["float32"], indirect=True)
def test_a_checkpoint_that_one_of_two_ranks_made_alone_is_taken_up_by_both(trained: Trained, tmp_path: Path) -> None:
    task = partial(alone_then_together, trained.settings, tmp_path / "checkpoints")
    step, state = SpawnedRanks(2, task, tmp_path / "ranks").results(DEADLINE_S)[0]
    assert step == 1
    initial = gathered("saved", open_learner(trained.settings, torch.device("cpu")).state())
    assert state.keys() == initial.keys()
    for name, tensor in initial.items():
        assert torch.equal(state[name], tensor), name
