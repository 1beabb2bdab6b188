"""A file of a run's archive -> the step that it holds: its intent, its metrics and its groups' attempts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import zstandard

from shared.errors import RunRejected, WireError
from shared.messages import Codec, StepIntent

FOLDER = "archive"
OWNER = "owner"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ArchivedStep:
    """All that a step trained, and what came of it."""

    intent: StepIntent
    metrics: dict[str, float]
    """Of the step's commit; empty if the step was never committed."""
    payloads: list[list[bytes]]
    """Encoded Rollouts, by group in the order of the intent, then by attempt."""


def archived_by(run_folder: Path) -> str:
    """The owner of the archive; empty if there is none."""
    try:
        return (run_folder / FOLDER / OWNER).read_text()
    except OSError:
        return ""


def read_step(run_folder: Path, step: int) -> ArchivedStep | None:
    """What the archive of a run holds of one step; None if it does not hold the step.

    Raises:
        RunRejected: the file is damaged, or another version of Sluice wrote it.
    """
    path = step_file(run_folder, step)
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content: dict[str, Any] = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(packed))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        intent: Codec[StepIntent] = Codec(StepIntent)
        return ArchivedStep(intent.decode(content["intent"]), content["metrics"], content["payloads"])
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, WireError) as error:
        raise RunRejected(f"{path} is damaged ({error}); restore the file") from error


def step_file(run_folder: Path, step: int) -> Path:
    """Where a step is, if it is archived."""
    return run_folder / FOLDER / f"step_{step:06d}.msgpack.zst"
