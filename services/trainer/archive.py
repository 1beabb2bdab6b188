"""Trained steps <-> one file each: the recorded intent, the commit's metrics and the groups' attempts, as they were."""

import os
from pathlib import Path
from typing import cast

import msgpack
import zstandard

from shared.archive import FOLDER, FORMAT, OWNER, ArchivedStep, read_step, step_file
from shared.messages import Codec, StepIntent

__all__ = ["FOLDER", "OWNER", "ArchivedStep", "is_archived", "open_archive", "read_step", "step_file", "write_step"]

LEVEL = 3


def open_archive(run_folder: Path, owner: str) -> None:
    """Make the archive's folder; one that an earlier run of the same name left is set aside by its owner's name."""
    folder = run_folder / FOLDER
    mark = folder / OWNER
    found = mark.read_text() if mark.exists() else ""
    if folder.exists() and found != owner:
        folder.rename(run_folder / f"{FOLDER}_{found or 'unknown'}")
    if not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(mark, owner.encode())


def write_step(run_folder: Path, step: ArchivedStep) -> Path:
    """Write a step durably: aside, synced, renamed. A step that is there already is replaced."""
    intent: Codec[StepIntent] = Codec(StepIntent)
    content = {
        "format": FORMAT,
        "intent": intent.encode(step.intent),
        "metrics": step.metrics,
        "payloads": step.payloads,
    }
    packed = cast(bytes, msgpack.packb(content, use_bin_type=True))
    path = step_file(run_folder, step.intent.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(packed))
    return path


def is_archived(run_folder: Path, step: int) -> bool:
    """Whether the archive can stand in for the groups of a step."""
    return step_file(run_folder, step).exists()


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".writing_{path.name}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
