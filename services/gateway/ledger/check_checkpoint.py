"""The checkpoints of a run on disk -> their steps, of which the newest is one that the ledger must have reached."""

import json
from pathlib import Path

from shared.runs import RunRecord


def newest_checkpoint(runs_folder: Path, record: RunRecord) -> int | None:
    """The step of the newest whole checkpoint of this run; None if there is none that can be read here.

    Read before the ledger: a trainer writes it after the step is recorded durably.
    """
    return max(own_checkpoints(runs_folder, record), default=None)


def own_checkpoints(runs_folder: Path, record: RunRecord) -> list[int]:
    """The steps of the whole checkpoints of this run that can be read here, in no order."""
    steps: list[int] = []
    for manifest in (runs_folder / record.run / "checkpoints").glob("step_*/manifest.json"):
        try:
            content = json.loads(manifest.read_text("utf-8"))
            mine, step = content["owner"] == f"{record.created:.6f}", int(content["step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being removed, or damaged; the trainer tells of damaged ones
        if mine:
            steps.append(step)
    return steps
