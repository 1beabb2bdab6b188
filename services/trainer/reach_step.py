"""A recorded run and a step -> the model as it was after that step: from a checkpoint, and by training what follows."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from services.trainer.checkpoint import UNREADABLE, Checkpoint, Checkpoints
from services.trainer.compute_thread import ComputeThread
from services.trainer.learner import Learner
from services.trainer.load_model import choose_device
from services.trainer.open_learner import open_learner
from services.trainer.ranks import OneRank
from services.trainer.recorded_run import RecordedRun, find_run
from services.trainer.recorded_steps import RecordedSteps
from services.trainer.share_step import share_of
from shared.errors import RunRejected
from shared.logs import Log
from shared.run_settings import RunSettings


@dataclass(frozen=True, slots=True)
class Reached:
    """A model in the state after `step` steps."""

    step: int
    learner: Learner
    begin: str
    """Where it came from before steps were trained again, in words."""


@dataclass(frozen=True, slots=True)
class Recordings:
    """Where recorded runs are found."""

    redis: Redis | None
    runs_folder: Path
    log: Log

    async def find(self, run: str) -> RecordedRun:
        """RunRejected if there is no such run."""
        return await find_run(self.redis, self.runs_folder, run)

    async def steps(self, run: RecordedRun) -> RecordedSteps:
        steps = RecordedSteps(self.redis, run)
        await steps.open()
        return steps

    def checkpoints(self, run: RecordedRun) -> Checkpoints:
        """To be read only."""
        return Checkpoints(run.folder / "checkpoints", run.owner, run.settings.trainer.keep_checkpoints, self.log)


@contextlib.asynccontextmanager
async def computing(settings: RunSettings) -> AsyncGenerator[ComputeThread]:
    """A thread that computes as the trainer of a run with these settings does, to the last bit."""
    compute = ComputeThread(settings.trainer.threads)
    try:
        yield compute
    finally:
        compute.close()


async def reach(recordings: Recordings, run: RecordedRun, step: int) -> Reached:
    """The state of `run` after `step` steps.

    Raises:
        RunRejected: its model, or a recorded step that has to be trained again, is gone.
    """
    if run.settings.branch is not None and step < run.settings.branch.step:
        raise RunRejected(
            f"run {run.run} is a branch and begins at step {run.settings.branch.step};"
            f" its steps up to there are those of run {run.settings.branch.run}"
        )
    steps = await recordings.steps(run)
    async with computing(run.settings) as compute:
        checkpoint, way = await compute.run(_way_to, recordings.checkpoints(run), run, steps, step, recordings.log)
        reached = await _begin(recordings, run, checkpoint, compute)
        for number in way:
            recorded = await steps.read(number)
            share = share_of(run.settings, recorded.intent, OneRank())
            await compute.run(reached.learner.train, recorded.rollouts, recorded.intent, share)
            recordings.log.info("step_trained_again", run=run.run, step=number, until=step)
    return Reached(step, reached.learner, reached.begin)


async def _begin(
    recordings: Recordings, run: RecordedRun, checkpoint: Checkpoint | None, compute: ComputeThread
) -> Reached:
    """The state of a checkpoint; without one, that which the run begins with."""
    device, branch = choose_device(run.settings.engine.device), run.settings.branch
    theirs = None
    if checkpoint is None and branch is not None:
        theirs = await reach(recordings, await recordings.find(branch.run), branch.step)
    learner = await compute.run(open_learner, run.settings, device)
    if checkpoint is not None:
        await compute.run(learner.load_state, checkpoint.state())
        return Reached(checkpoint.step, learner, f"checkpoint of run {run.run} at step {checkpoint.step}")
    if theirs is not None:
        await compute.run(_go_on, learner, run, theirs)
        return Reached(theirs.step, learner, theirs.begin)
    return Reached(0, learner, f"initial model of run {run.run}")


def _way_to(
    checkpoints: Checkpoints, run: RecordedRun, steps: RecordedSteps, step: int, log: Log
) -> tuple[Checkpoint | None, list[int]]:
    """The newest whole checkpoint that the state after `step` comes from, and the steps to be trained after it.

    Unlike a trainer, this changes nothing on disk.
    """
    first, kept, way = run.settings.branch.step if run.settings.branch else 0, checkpoints.steps(), list[int]()
    while True:
        checkpoint = _usable(checkpoints, step, log) if step in kept else None
        if checkpoint is not None or step <= first:
            return checkpoint, way[::-1]
        parent = steps.parent(step)
        if parent == step - 1:  # a rollback starts from an older version than that, and trains nothing
            way.append(step)
        step = parent


def _go_on(learner: Learner, run: RecordedRun, theirs: Reached) -> None:
    try:
        learner.load_state(theirs.learner.state())
    except RunRejected as error:
        why = str(error).partition(";")[0]
        raise RunRejected(
            f"model.path {run.settings.model.path} is not the model of the run that {run.run} goes on from ({why});"
            " leave model.path as that run has it"
        ) from error


def read_own(checkpoints: Checkpoints, step: int) -> Checkpoint:
    """One checkpoint; ValueError if it is of an earlier run of the same name, else what Checkpoints.read raises."""
    checkpoint = checkpoints.read(step)
    if checkpoint.about.get("owner") != checkpoints.owner:
        raise ValueError("an earlier run of the same name wrote it")
    return checkpoint


def _usable(checkpoints: Checkpoints, step: int, log: Log) -> Checkpoint | None:
    try:
        return read_own(checkpoints, step)
    except UNREADABLE as error:
        log.warning("checkpoint_unusable", folder=str(checkpoints.folder), step=step, error=str(error))
        return None
