"""Checkpoints: whole or not there, verified when read, the damaged ones named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.backend import State
from services.trainer.checkpoint import MANIFEST, Checkpoints
from shared.logs import Log


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
    assert torch.equal(newest.state["weights"]["w"], state(6)["weights"]["w"])
    assert torch.equal(newest.state["random"]["cpu"], torch.get_rng_state())
    assert (kept.steps(), kept.covered()) == ([4, 6], 4)


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
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x77")


def lose_a_file(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format": 1')


@pytest.mark.parametrize("damage", [truncate, flip, lose_a_file, garble_the_manifest])
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


def test_a_write_that_was_cut_off_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoints(tmp_path)
    kept.save(2, state(2))

    def lose_power(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("services.trainer.checkpoint._sync", lose_power)
        with pytest.raises(KeyboardInterrupt):
            kept.save(4, state(4))
    newest = kept.newest()
    assert newest is not None
    assert newest.step == 2
    kept.save(4, state(4))
    assert kept.steps() == [2, 4]


def test_checkpoints_of_an_earlier_run_of_the_same_name_are_set_aside(tmp_path: Path) -> None:
    checkpoints(tmp_path, "first").save(2, state(2))
    assert checkpoints(tmp_path, "second").newest() is None
    assert (tmp_path / "checkpoints_first" / "step_000002").is_dir()
