"""Recorded steps of a run, trained again -> one comparison a step: metrics, checkpoint, published version."""

from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any

from services.trainer.checkpoint import UNREADABLE, Checkpoint
from services.trainer.compare_replay import (
    Pair,
    WeightCheck,
    against_checkpoint,
    against_version,
    differing_metrics,
    not_compared,
    of_the_step,
)
from services.trainer.compute_thread import ComputeThread
from services.trainer.learner import Learner
from services.trainer.load_model import choose_device
from services.trainer.open_learner import open_learner
from services.trainer.ranks import OneRank
from services.trainer.reach_step import Reached, Recordings, computing, reach, read_own
from services.trainer.recorded_run import RecordedRun
from services.trainer.recorded_steps import RecordedStep, RecordedSteps
from services.trainer.share_step import share_of
from services.trainer.take_up import WITHOUT_EFFECT
from shared.check_trainer import OF_SERVED_TEACHER
from shared.errors import RunRejected, SettingsError
from shared.run_settings import RunSettings
from shared.settings import Tree, merge, validate


@dataclass(frozen=True, slots=True)
class StepComparison:
    """One step, recorded and replayed."""

    step: int
    source: str
    """Where its rollouts came from: archive or redis; rollback for a step that has none."""
    metrics: dict[str, Pair]
    """Every computed metric: (recorded, replayed)."""
    differs: list[str]
    """Those that are not the same."""
    not_compared: list[str]
    weights: list[WeightCheck]

    @property
    def equal(self) -> bool:
        return not self.differs and all(check.equal for check in self.weights)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "equal": self.equal}


def changed_settings(run: RecordedRun, overrides: Tree) -> RunSettings:
    """The run's settings with the changes; SettingsError for one that acts before a step or not on it at all."""
    wrong = [name for name in overrides if name != "trainer"]
    trainer = overrides.get("trainer")
    if isinstance(trainer, dict):
        wrong += [f"trainer.{name}" for name in trainer if name in WITHOUT_EFFECT]
        asked = trainer.get("distillation")
        if isinstance(asked, dict):
            wrong += [f"trainer.distillation.{name}" for name in OF_SERVED_TEACHER if name in asked]
    if wrong:
        raise SettingsError(
            f"{wrong[0]} changes nothing about training a recorded step again; a replay takes settings of the trainer,"
            " such as trainer.learning_rate"
        )
    return validate(RunSettings, merge(run.settings.model_dump(mode="json"), overrides), f"run {run.run}, changed")


async def replay(
    recordings: Recordings, run: RecordedRun, first: int, last: int | None, settings: RunSettings
) -> AsyncGenerator[StepComparison]:
    """Train the steps `first` to `last` again, with `settings` from `first` on; `last` None: the newest.

    Behind a rollback it goes on from the older version as the run had it, whatever the settings.

    Raises:
        RunRejected: a step is not recorded, or its rollouts, the model or the state before it are gone.
    """
    steps = await recordings.steps(run)
    newest = steps.newest()
    until = newest if last is None else last
    _check_range(run, first, until, settings, newest)
    before = await reach(recordings, run, steps.parent(first))
    recordings.log.info("replay_begins", run=run.run, state=before.begin, first=first, last=until)
    async with computing(settings) as compute:
        learner = await _changed(before, run.settings, settings, compute)
        for step in range(first, until + 1):
            recorded = await steps.read(step)
            if recorded.intent.is_rollback and step > first:
                older = await reach(recordings, run, recorded.intent.weight_version)
                learner = await _changed(older, run.settings, settings, compute)
            metrics = {} if recorded.intent.is_rollback else await _train(learner, recorded, settings, compute)
            differing = differing_metrics(recorded.metrics, metrics)
            yield StepComparison(
                step,
                recorded.source,
                {name: differing.get(name, (value, value)) for name, value in metrics.items()},
                list(differing),
                not_compared(recorded.metrics, metrics),
                await compute.run(_check_weights, recordings, run, steps, step, learner),
            )


async def _train(
    learner: Learner, recorded: RecordedStep, settings: RunSettings, compute: ComputeThread
) -> dict[str, float]:
    share = share_of(settings, recorded.intent, OneRank())
    return of_the_step(await compute.run(learner.train, recorded.rollouts, recorded.intent, share))


def _check_range(run: RecordedRun, first: int, last: int, settings: RunSettings, newest: int) -> None:
    if max(first, last) > newest:
        raise RunRejected(f"run {run.run} has recorded {newest} steps; replay up to step {newest}")
    if not 1 <= first <= last:
        raise RunRejected(f"there are no steps {first} to {last}; steps count from 1, and the first comes first")
    if last > settings.trainer.steps:
        raise SettingsError(f"trainer.steps is {settings.trainer.steps}; write {last} or more to replay step {last}")


async def _changed(before: Reached, recorded: RunSettings, settings: RunSettings, compute: ComputeThread) -> Learner:
    """The same state under the changed settings of the optimizer."""
    if settings == recorded:
        return before.learner
    learner = await compute.run(open_learner, settings, choose_device(settings.engine.device))
    await compute.run(learner.load_state, before.learner.state())
    return learner


def _check_weights(
    recordings: Recordings, run: RecordedRun, steps: RecordedSteps, step: int, learner: Learner
) -> list[WeightCheck]:
    checks: list[WeightCheck] = []
    checkpoint = _checkpoint(recordings, run, step)
    if checkpoint is not None:
        checks.append(against_checkpoint(checkpoint.state(), learner.state()))
    if step in steps.announced:
        checks.append(against_version(steps.announced[step], dict(learner.named_tensors())))
    return checks


def _checkpoint(recordings: Recordings, run: RecordedRun, step: int) -> Checkpoint | None:
    checkpoints = recordings.checkpoints(run)
    if step not in checkpoints.steps():
        return None
    try:
        return read_own(checkpoints, step)
    except FileNotFoundError:
        return None  # the trainer of a live run removed it since
    except UNREADABLE as error:
        raise RunRejected(f"the checkpoint of run {run.run} at step {step} is unusable: {error}") from error
