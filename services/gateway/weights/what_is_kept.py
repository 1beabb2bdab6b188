"""A run's folder and its ledger -> the versions whose weights can be had again."""

import asyncio
from pathlib import Path

from services.gateway.ledger.check_checkpoint import own_checkpoints
from shared.archive import FOLDER, archived_by, step_file
from shared.lineage import Lineage, available
from shared.runs import RunRecord


async def what_is_kept(
    record: RunRecord, runs_folder: Path, lineage: Lineage, counters: dict[str, int]
) -> list[int] | None:
    """In order; None if the run's folder is not on this machine, so that only its trainer knows."""
    return await asyncio.to_thread(_kept, record, runs_folder, lineage, counters)


def _kept(record: RunRecord, runs_folder: Path, lineage: Lineage, counters: dict[str, int]) -> list[int] | None:
    folder, branch = runs_folder / record.run, record.settings.branch
    if not folder.is_dir():
        return None
    states = {*own_checkpoints(runs_folder, record), *(() if branch else (0,))}  # the initial model is in model.path
    archived = _archived(folder, f"{record.created:.6f}")
    forgotten = counters.get("forgotten_step", 0)

    def has_groups(step: int) -> bool:
        return step > forgotten or step_file(folder, step).name in archived

    return available(lineage, branch.step if branch else 0, counters.get("step", 0), states, has_groups)


def _archived(folder: Path, owner: str) -> set[str]:
    if archived_by(folder) != owner:
        return set()
    return {path.name for path in (folder / FOLDER).iterdir()}
