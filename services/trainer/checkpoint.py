"""The trainer's state <-> numbered folders on disk: written aside, synced, renamed; verified when read.

Every rank holds a Checkpoints of the same folder and makes the same calls; rank 0 alone names and removes folders.
A checkpoint needs no state of a random generator to be exact: every step seeds its own from the recorded intent. The
state is kept all the same, for plugins that draw numbers between steps.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from services.trainer.backend import State
from services.trainer.checkpoint_files import begin_writing, fill, read_whole
from services.trainer.ranks import OneRank, Ranks
from shared.logs import Log

MANIFEST = "manifest.json"
FORMAT = 2
UNREADABLE = (OSError, ValueError, KeyError)
"""What reading a missing or damaged checkpoint raises."""


def _any_step(step: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps, verified."""

    step: int
    folder: Path
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    """The rest of its manifest, such as `ledger`, `seed`, `schedule` and `time`."""

    def state(self) -> State:
        """All of it, unsharded, on the CPU."""
        return read_whole(self.folder)


@dataclass(frozen=True, slots=True)
class Writing:
    """A checkpoint on its way to the disk."""

    step: int
    about: Mapping[str, Any]
    files: Future[Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run, `folder/step_000050/` each."""

    folder: Path
    owner: str
    """Which run they belong to; a later run of the same name has another owner."""
    keep: int
    log: Log
    ranks: Ranks = field(default_factory=OneRank)
    is_ours: Callable[[int], bool] = _any_step
    """Whether the run's present state comes from the state after a step; others were left behind by a rollback."""

    def begin(self, step: int, state: State, about: Mapping[str, Any] | None = None) -> Writing:
        """Copy the state and start to write it; the next step may change the state when this returns.

        `about` goes into the manifest: where the ledger stood, and what the state was made with.
        """
        if self.ranks.rank == 0:
            self._clear(self._aside_of(step)).mkdir(parents=True, exist_ok=True)
        return Writing(step, about or {}, begin_writing(self.folder / self._aside_of(step), state, self.ranks))

    def finish(self, writing: Writing) -> None:
        """Wait for the files and make them a checkpoint, which is then whole; remove the oldest beyond `keep`."""
        writing.files.result()
        if self.ranks.rank:
            return
        aside = self.folder / self._aside_of(writing.step)
        files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(aside.iterdir())}
        manifest = {
            **writing.about,
            "format": FORMAT,
            "owner": self.owner,
            "step": writing.step,
            "time": time.time(),
            "files": files,
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (aside / MANIFEST, aside):
            _sync(path)
        self._clear(self._name(writing.step))
        aside.rename(self.folder / self._name(writing.step))
        _sync(self.folder)
        self.remove_old()

    def save(self, step: int, state: State, about: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint that is either whole or not there, and wait for it."""
        self.finish(self.begin(step, state, about))

    def remove_old(self) -> None:
        """Keep the newest `keep` of those that the present state comes from, and all that are newer than these."""
        oldest = self.covered()
        for step in self.steps():
            if step < oldest:
                self._clear(self._name(step))

    def newest(self, limit: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint of a step up to `limit` that the present state comes from.

        A damaged one is named in the log and set aside, and the one before is taken. So are those beyond the limit: the
        ledger does not know of their steps any more, which will be trained again.
        """
        self._leave_to_other_runs()
        for leftover in self.folder.glob(".writing_*"):
            self._clear(leftover.name)
        for step in reversed(self.steps()):
            path = self.folder / self._name(step)
            if limit is not None and step > limit:
                renamed = self._aside(path, "ahead_of_ledger")
                self.log.warning("checkpoint_ahead", checkpoint=str(path), ledger=limit, renamed=renamed)
                continue
            if not self.is_ours(step):
                continue
            try:
                return self.read(step)
            except UNREADABLE as error:
                renamed = self._aside(path, "damaged")
                self.log.error("checkpoint_damaged", checkpoint=str(path), error=str(error), renamed=renamed)
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step; OSError, ValueError or KeyError if it is not there or damaged."""
        path = self.folder / self._name(step)
        manifest = _manifest(path / MANIFEST)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} is not {FORMAT}")
        for name, file in manifest.pop("files").items():
            if _sha256(path / name) != file["sha256"]:
                raise ValueError(f"{name} does not have the checksum that was written")
        return Checkpoint(step, path, manifest)

    def fill(self, checkpoint: Checkpoint, state: State) -> None:
        """Read it into these tensors, on every rank its own; RunRejected if it belongs to another model."""
        before = [step for step in self.steps() if step < checkpoint.step]
        begin = f"from step {before[-1]}" if before else "from its initial model"
        fill(checkpoint.folder, state, self.ranks, f"remove the folder, and the run goes on {begin}")

    def of_one_process(self) -> "Checkpoints":
        """The same folder, for a state that this process holds alone."""
        return Checkpoints(self.folder, self.owner, self.keep, self.log)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step that another rank has verified."""
        return Checkpoint(step, self.folder / self._name(step))

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def covered(self) -> int:
        """The newest step whose samples no resume can need: as many checkpoints as are kept stand at it or later."""
        steps = [step for step in self.steps() if self.is_ours(step)]
        return steps[-self.keep] if len(steps) >= self.keep else 0

    def _aside(self, path: Path, why: str) -> str:
        renamed = f"{why}_{path.name}"
        self._clear(renamed)
        path.rename(self.folder / renamed)
        return renamed

    def _leave_to_other_runs(self) -> None:
        """Set all checkpoints aside if an earlier run of the same name wrote them."""
        manifests = sorted(self.folder.glob(f"step_*/{MANIFEST}"))
        owners = {_owner(path) for path in manifests} - {self.owner, ""}
        if owners:
            aside = self.folder.with_name(f"{self.folder.name}_{sorted(owners)[0]}")
            self.log.warning("checkpoints_of_another_run", folder=str(self.folder), renamed=str(aside))
            self.folder.rename(aside)

    def _clear(self, name: str) -> Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    @staticmethod
    def _name(step: int) -> str:
        return f"step_{step:06d}"

    @staticmethod
    def _aside_of(step: int) -> str:
        return f".writing_{step:06d}"


def _manifest(path: Path) -> dict[str, Any]:
    content: object = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{path.name} is not a table that names files")
    return cast(dict[str, Any], content)


def _owner(manifest: Path) -> str:
    try:
        return str(_manifest(manifest)["owner"])
    except UNREADABLE:
        return ""  # damaged; the search for the newest one says so


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
