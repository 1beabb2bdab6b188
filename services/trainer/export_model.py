"""The trained model -> a Hugging Face folder that is either whole or not there."""

import shutil
from pathlib import Path

from services.trainer.file_modes import share_files
from services.trainer.learner import Learner

EXPORTS = "exports"
"""Of a run's folder: the models of its steps, step_000050 each."""


def export_model(learner: Learner, folder: Path) -> None:
    """Write aside, then put the folder in its place; an older export there is replaced."""
    aside, old = folder.with_name(f".{folder.name}_writing"), folder.with_name(f".{folder.name}_old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    learner.export(aside)
    share_files(aside)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
