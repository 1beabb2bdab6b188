"""A run's record <-> run.json in its folder, so that its steps can be trained again when Redis is gone."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from shared.errors import RunRejected
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs
from shared.settings import validate

NAME, OWNER = "run.json", "OWNER"


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run as it was recorded: what it was told, and where its checkpoints and its archive are."""

    run: str
    settings: RunSettings
    owner: str
    """By which its files differ from those of an earlier run of the same name."""
    folder: Path


def owner_of(record: RunRecord) -> str:
    return f"{record.created:.6f}"


def own_folder(folder: Path, record: RunRecord) -> Path:
    """Made, and marked as this run's; one of an earlier run of the same name is set aside by its owner's name."""
    mark, owner = folder / OWNER, owner_of(record)
    found = mark.read_text("utf-8") if mark.exists() else ""
    if folder.exists() and found != owner:
        folder.rename(folder.with_name(f"{folder.name}_{found or 'unknown'}"))
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(owner, "utf-8")
    return folder


def note_run(folder: Path, record: RunRecord) -> None:
    """Write what the registry knows of the run into its folder."""
    content = {"run": record.run, "owner": owner_of(record), "settings": record.settings.model_dump(mode="json")}
    aside = folder / f".writing_{NAME}"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / NAME)


async def find_run(redis: Redis | None, runs_folder: Path, run: str) -> RecordedRun:
    """The run by the registry, else by its folder; RunRejected if neither knows it."""
    record = await Runs(redis).get(run) if redis is not None else None
    if record is not None:
        return RecordedRun(run, record.settings, owner_of(record), runs_folder / run)
    return _noted(runs_folder, run, "is neither in Redis nor" if redis is not None else "is not")


def _noted(runs_folder: Path, run: str, lacking: str) -> RecordedRun:
    file = runs_folder / run / NAME
    try:
        content = json.loads(file.read_text("utf-8"))
        settings = validate(RunSettings, content["settings"], str(file))
        return RecordedRun(run, settings, str(content["owner"]), file.parent)
    except FileNotFoundError:
        known = sorted(path.parent.name for path in runs_folder.glob(f"*/{NAME}"))
        hint = f"runs in {runs_folder}: {', '.join(known)}" if known else f"{runs_folder} holds no run"
        raise RunRejected(f"run {run} {lacking} in {file}; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunRejected(
            f"{file} is damaged ({error}); restore it, or start Redis, which knows the run too"
        ) from error
