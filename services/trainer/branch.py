"""A run that is a branch and has no checkpoint -> its first one: the state of its parent after the branch's step."""

import asyncio
import time
from pathlib import Path

from services.trainer.checkpoint import Checkpoints
from services.trainer.reach_step import Reached, Recordings, computing, reach
from services.trainer.recorded_run import RecordedRun, owner_of
from shared.errors import RunRejected
from shared.run_settings import BranchSettings, RunSettings
from shared.service import Serving


async def take_up_branch(serving: Serving, checkpoints: Checkpoints) -> None:
    """Make the first checkpoint of a branch, from which it then resumes like any run; nothing for other runs.

    A trainer that is killed before the checkpoint is whole does it again, one that is killed later never.

    Raises:
        RunRejected: the parent, its model or one of its recorded steps is gone, or is not of the same kind.
    """
    settings, place = serving.record.settings, serving.place
    branch = settings.branch
    if branch is None or await asyncio.to_thread(checkpoints.newest) is not None:
        return
    begun = time.monotonic()
    # all of it reads, so an outage of Redis in the middle is waited out and it begins again
    reached = await serving.await_redis()(lambda: _reach_begin(serving, branch, checkpoints.folder.parent))
    about = {"branch": branch.model_dump(mode="json")}
    async with computing(settings) as compute:
        await compute.run(checkpoints.of_one_process().save, branch.step, reached.learner.state(), about)
    seconds = time.monotonic() - begun
    place.log.info("branch_taken_up", run=serving.run, state=reached.begin, step=branch.step, seconds=seconds)


async def _reach_begin(serving: Serving, branch: BranchSettings, folder: Path) -> Reached:
    recordings = Recordings(serving.redis, serving.place.deployment.runs_folder, serving.place.log)
    parent = await recordings.find(branch.run)
    _check(serving.record.settings, parent)
    run = RecordedRun(serving.run, serving.record.settings, owner_of(serving.record), folder)
    return await reach(recordings, run, branch.step)


def _check(settings: RunSettings, parent: RecordedRun) -> None:
    theirs = parent.settings
    if (settings.kind, settings.model.dtype) != (theirs.kind, theirs.model.dtype):
        raise RunRejected(
            f"run {settings.name} is of kind {settings.kind} in {settings.model.dtype}, its parent {parent.run} of kind"
            f" {theirs.kind} in {theirs.model.dtype}; a branch goes on with the same"
        )
    moved = settings.lora.rank and settings.model.path != theirs.model.path
    if moved or not settings.lora.goes_on_from(theirs.lora):
        raise RunRejected(
            f"run {settings.name} and its parent {parent.run} differ in [lora], or in the model.path that adapters are"
            " for; a branch goes on with the same"
        )
