"""One run of the registry -> trained, published, exported and ended: the trainer's part of `follow_runs`."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from services.trainer.backends.adapt_layers import shape_of
from services.trainer.compute_thread import ComputeThread
from services.trainer.export_model import export_model
from services.trainer.file_transport import FileTransport
from services.trainer.lend_version import Lender
from services.trainer.orders import RanksOutOfStep
from services.trainer.prepare_run import OpenPublisher, PreparedRun, prepare_run
from services.trainer.publish_weights import Deadlines, Transport, WeightPublisher
from services.trainer.recorded_run import owner_of
from services.trainer.roll_back import WentBack
from services.trainer.settled_heap import clear_heap, settle_heap
from services.trainer.step_ledger import StepLedger
from services.trainer.team import Team
from services.trainer.tell import tell
from services.trainer.version_writer import RunFiles, VersionWriter
from shared.errors import LedgerBehind, RunRejected
from shared.run_settings import WeightSettings
from shared.runs import Runs, State
from shared.service import Serving, run_folder
from shared.tasks import end
from shared.weight_store import WeightStore

ONE_FILE_MIB = 2**20
"""Larger than all adapters of a model: who reads them expects one file."""


@dataclass(frozen=True, slots=True)
class Left:
    """Why the models in memory are let go of."""

    behind: int | None = None
    """The step that was reached when Redis turned out to be behind it; None after a rollback."""


async def serve(serving: Serving, team: Team) -> None:
    """Train a run until it is finished or stopped.

    Raises:
        RanksOutOfStep: the run cannot be trained, and the ranks learned of it within an order; the run has failed.
    """
    try:
        await train_run(serving, _open_publisher, team)
    except RunRejected as error:
        if not team.is_out_of_step:
            raise
        reason = f"trainer: {error}"
        await serving.await_redis()(lambda: Runs(serving.redis).fail(serving.run, reason))
        raise RanksOutOfStep(f"run {serving.run}: {error}") from error


async def train_run(serving: Serving, open_publisher: OpenPublisher, team: Team | None = None) -> None:
    """The same with any publisher of weights.

    Where Redis lost its last writes, the trainer goes back to the newest checkpoint that Redis covers, and on from
    there: what Redis has recorded is trained again, in the same order. After a rollback it goes on likewise, from the
    newest checkpoint that the older version comes from.
    """
    team = team or Team()
    compute = ComputeThread(serving.record.settings.trainer.threads)
    left: Left | None = Left()
    try:
        while left is not None:
            left = await _train_until_left(serving, compute, open_publisher, team, left)
    finally:
        clear_heap()
        compute.close()


async def _train_until_left(
    serving: Serving, compute: ComputeThread, open_publisher: OpenPublisher, team: Team, left: Left
) -> Left | None:
    """Train a run to its end.

    Args:
        left: why the trainer takes the run up anew, if it does.

    Returns:
        Why it has to take the run up anew; None at the end of the run.
    """
    clear_heap()  # of a model before this one, also where an exception has held on to it until now
    prepared = await prepare_run(serving, compute, open_publisher, team)
    settle_heap()
    serving.ready()
    if left.behind is not None:
        detail = {"from": left.behind, "to": prepared.done}
        await tell(serving.redis, serving.run, serving.place.log, "trainer_rewound", detail)
    try:
        await _with_background(serving, prepared)
    except LedgerBehind as error:
        serving.place.log.warning("ledger_behind", run=serving.run, reason=str(error))
        return Left(prepared.loop.progress.step)
    except WentBack:
        return Left()
    return None


async def _with_background(serving: Serving, prepared: PreparedRun) -> None:
    work = [_train_and_end(serving, prepared), *(start() for start in prepared.background)]
    tasks = [asyncio.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(*tasks)
        await prepared.close()


async def _train_and_end(serving: Serving, prepared: PreparedRun) -> None:
    loop, settings, runs = prepared.loop, serving.record.settings, Runs(serving.redis)
    done = await loop.run(prepared.done)
    is_evaluated = await prepared.gate.wait(done)
    if settings.evaluates_only:
        is_finished = is_evaluated
        if is_evaluated:
            await prepared.gate.check(done)
    else:
        is_finished = done == settings.trainer.steps
        await loop.compute.run(export_model, prepared.learner, prepared.folder / "export")
    await prepared.metrics.reach(done)
    await loop.redis(lambda: loop.ledger.check(done))
    state: State = "finished" if is_finished else "stopped"
    await loop.redis(lambda: runs.move(serving.run, ("starting", "running", "stopping"), state))
    serving.place.log.info("run_ended", run=serving.run, state=state, step=done)


def _open_publisher(serving: Serving, ledger: StepLedger) -> WeightPublisher:
    settings, host = serving.record.settings, serving.place.deployment.trainer.host
    weights = settings.weights
    deadlines = Deadlines(
        enrol_s=weights.enrol_deadline_s,
        update_s=weights.update_deadline_s,
        max_unavailable=weights.max_unavailable,
        engines_per_group=weights.engines_per_group,
    )
    transport, log, await_redis = _transport(serving, ledger), serving.place.log, serving.await_redis()
    bucket_mib = ONE_FILE_MIB if settings.lora.is_served else weights.bucket_mib
    return WeightPublisher(ledger, host, log, bucket_mib, _staging(weights), deadlines, await_redis, transport)


def _staging(weights: WeightSettings) -> str:
    """Where snapshots are; see Stage."""
    if weights.transport == "ipc":
        return "shared" if weights.memory == "turns" else "device"
    return weights.staging


def _transport(serving: Serving, ledger: StepLedger) -> Transport | None:
    """None for the publisher's own, by broadcast."""
    weights = serving.record.settings.weights
    if weights.transport == "broadcast":
        return None
    if weights.transport == "ipc":
        return Lender(ledger, weights.enrol_deadline_s, weights.max_unavailable)
    return _file_transport(serving, ledger)


def _file_transport(serving: Serving, ledger: StepLedger) -> FileTransport:
    """RunRejected if the folder for versions cannot be used."""
    settings, record = serving.record.settings, serving.record
    weights = settings.weights
    folder = weights.folder or str(run_folder(serving.place.deployment, serving.run) / "weights")
    adapter = shape_of(settings.lora) if settings.lora.is_served else None
    model = Path(settings.model.path).expanduser()
    about = RunFiles(serving.run, owner_of(record), ledger.epoch, model, settings.model.dtype, adapter)
    writer = VersionWriter(WeightStore(folder), about, weights.full_every if weights.transport == "delta" else None)
    waits = (weights.enrol_deadline_s, weights.max_unavailable)
    return FileTransport(ledger, writer, weights.keep_versions, *waits, serving.place.log)
