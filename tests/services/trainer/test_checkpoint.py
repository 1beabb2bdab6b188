"""Checkpoints: whole or not there, verified when read, the damaged ones named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.backend import State
from services.trainer.checkpoint import MANIFEST, Checkpoints
from shared.errors import RunRejected
from shared.logs import Log

DATA = "__0_0.distcp"


class NotedLog(Log):
    """A log that remembers its lines."""

    def __init__(self) -> None:
        super().__init__("trainer")
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = error


def state(step: int) -> State:
    return {"weights": {"w": torch.full((3,), float(step))}, "random": {"cpu": torch.get_rng_state()}}


def checkpoints(tmp_path: Path, owner: str = "a", keep: int = 2) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", owner, keep, NotedLog())


def test_the_newest_is_read_back_and_only_as_many_as_wanted_are_kept(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    for step in (2, 4, 6):
        kept.save(step, state(step))
    newest = kept.newest()
    assert newest is not None
    assert newest.step == 6
    found = newest.state()
    assert {part: list(tensors) for part, tensors in found.items()} == {"weights": ["w"], "random": ["cpu"]}
    assert torch.equal(found["weights"]["w"], state(6)["weights"]["w"])
    assert torch.equal(found["random"]["cpu"], torch.get_rng_state())
    assert (kept.steps(), kept.covered()) == ([4, 6], 4)


def test_the_state_may_change_as_soon_as_writing_has_begun(tmp_path: Path) -> None:
    kept, changing = checkpoints(tmp_path), state(2)
    writing = kept.begin(2, changing)
    changing["weights"]["w"].fill_(77)
    assert kept.steps() == []
    kept.finish(writing)
    assert torch.equal(kept.read(2).state()["weights"]["w"], state(2)["weights"]["w"])


def test_it_is_read_into_tensors_that_are_there(tmp_path: Path) -> None:
    kept, into = checkpoints(tmp_path), state(0)
    kept.save(2, state(2))
    kept.fill(kept.read(2), into)
    assert torch.equal(into["weights"]["w"], state(2)["weights"]["w"])


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"w": torch.zeros(3), "v": torch.zeros(1)}, r"step_000002 misses tensor weights/v; .*remove the folder"),
        ({}, r"holds the unknown tensor weights/w"),
        ({"w": torch.zeros(4)}, r"the tensor weights/w in .*step_000002 is \[3\], the model's \[4\]"),
    ],
)
def test_one_of_another_model_is_refused_by_name(tmp_path: Path, weights: Any, sentence: str) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2))
    with pytest.raises(RunRejected, match=sentence):
        kept.fill(kept.read(2), {**state(2), "weights": weights})


def test_the_manifest_says_what_the_state_belongs_to(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2), {"ledger": {"step": 2, "intended": 2}, "seed": 7, "schedule": "abc"})
    newest = kept.newest()
    assert newest is not None
    assert newest.about["ledger"] == {"step": 2, "intended": 2}
    assert (newest.about["seed"], newest.about["schedule"], newest.about["step"]) == (7, "abc", 2)
    assert newest.about["time"] > 0


def test_checkpoints_beyond_the_ledger_are_set_aside_by_name(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, keep=3)
    for step in (2, 4, 6):
        kept.save(step, state(step))
    newest = kept.newest(limit=3)
    assert newest is not None
    assert newest.step == 2
    assert kept.steps() == [2]
    assert (kept.folder / "ahead_of_ledger_step_000006").is_dir()
    assert isinstance(kept.log, NotedLog)
    assert [event for event, _ in kept.log.lines] == ["checkpoint_ahead"] * 2


def test_nothing_is_covered_while_a_resume_could_begin_from_scratch(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2))
    assert kept.covered() == 0


def truncate(folder: Path) -> None:
    file = folder / DATA
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / DATA
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / DATA).unlink()


def lose_the_index(folder: Path) -> None:
    (folder / ".metadata").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format": 2')


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def become_older(folder: Path) -> None:
    """What wrote it laid the files out in another way."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))


DAMAGES = [truncate, flip, lose_a_file, lose_the_index, garble_the_manifest, lose_the_manifest, become_older]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: Any) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2))
    kept.save(4, state(4))
    damage(kept.folder / "step_000004")
    newest = kept.newest()
    assert newest is not None
    assert newest.step == 2
    assert isinstance(kept.log, NotedLog)
    ((event, fields),) = kept.log.lines
    assert event == "checkpoint_damaged"
    assert fields["checkpoint"].endswith("step_000004")
    assert kept.steps() == [2]
    assert (kept.folder / "damaged_step_000004").is_dir()


def test_a_write_that_was_cut_off_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2))

    def lose_power(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("services.trainer.checkpoint._sync", lose_power)
        with pytest.raises(KeyboardInterrupt):
            kept.save(4, state(4))
    assert [path.name for path in sorted(kept.folder.iterdir())] == [".writing_000004", "step_000002"]
    newest = kept.newest()
    assert newest is not None
    assert newest.step == 2
    assert [path.name for path in kept.folder.iterdir()] == ["step_000002"]
    kept.save(4, state(4))
    assert kept.steps() == [2, 4]


def test_checkpoints_of_an_earlier_run_of_the_same_name_are_set_aside(tmp_path: Path) -> None:
    checkpoints(tmp_path, "first").save(2, state(2))
    assert checkpoints(tmp_path, "second").newest() is None
    assert (tmp_path / "checkpoints_first" / "step_000002").is_dir()
