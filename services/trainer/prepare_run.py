"""A run's settings -> everything that its training loop needs: model, optimizer, newest checkpoint, streams."""

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from services.trainer.archive import is_archived, open_archive
from services.trainer.archive_steps import StepArchive
from services.trainer.branch import take_up_branch
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.compute_thread import ComputeThread
from services.trainer.evaluation_gate import EvaluationGate
from services.trainer.export_model import EXPORTS
from services.trainer.fetch_payloads import fetch_step
from services.trainer.learner import Learner
from services.trainer.ledger_on_disk import LedgerOnDisk
from services.trainer.load_model import choose_device
from services.trainer.loop import TrainingLoop
from services.trainer.memory_turns import ask_for_memory, take_turns
from services.trainer.publish_versions import CountedVersions, PublishedVersions, Publisher
from services.trainer.quantise_weights import published_weights
from services.trainer.recorded_run import note_run, own_folder, owner_of
from services.trainer.retention import Retention
from services.trainer.roll_back import GoBack
from services.trainer.sample_buffer import BatchPolicy, SampleBuffer
from services.trainer.select_groups import load_selection
from services.trainer.step_ledger import StepLedger
from services.trainer.stored_limit import StoredLimit
from services.trainer.take_up import manifest_of, take_up
from services.trainer.team import Team
from services.trainer.tell import tell
from services.trainer.watch_steps import watch_of
from services.trainer.write_metrics import MetricsWriter, open_metrics
from shared.await_redis import AwaitRedis
from shared.lineage import Lineage
from shared.messages import GroupReady
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs
from shared.scripts import Ledger
from shared.service import Serving, run_folder
from shared.streams import Delivery, Stream
from shared.topology import GROUPS, Keys

NEVER = 2**31
"""A ready group waits for its step for as long as it takes; its deliveries count the trainers that held it."""


class WeightService(Publisher, Protocol):
    """A publisher with what it does beside publishing."""

    async def serve_joiners(self) -> None: ...

    async def close(self) -> None: ...


OpenPublisher = Callable[[Serving, StepLedger], WeightService]


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """One run, ready to be trained."""

    loop: TrainingLoop
    done: int
    """Steps that the newest checkpoint covers."""
    gate: EvaluationGate
    metrics: MetricsWriter
    learner: Learner
    folder: Path
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]]
    """To be run beside the loop, until it ends."""
    close: Callable[[], Awaitable[None]]


async def prepare_run(
    serving: Serving, compute: ComputeThread, open_publisher: OpenPublisher, team: Team
) -> PreparedRun:
    """Build a run and take up its newest checkpoint; RunRejected if its model or checkpoint cannot be used."""
    settings, redis, log = serving.record.settings, serving.redis, serving.place.log
    keys, ledger, await_redis = Keys(serving.run), StepLedger(redis, serving.run), serving.await_redis()
    folder = run_folder(serving.place.deployment, serving.run)
    note_run(folder, serving.record)
    metrics = open_metrics(serving, ledger, folder)
    checkpoints = team.checkpoints(folder / "checkpoints", owner_of(serving.record), settings, log)
    await take_up_branch(serving, checkpoints)
    device = choose_device(settings.engine.device)
    engines = await ask_for_memory(serving, ledger, team)
    learner = await compute.run(team.open, serving.record, device)
    await await_redis(ledger.take_over)
    position, manifest = await await_redis(ledger.position), await compute.run(manifest_of, settings)
    lineage = await await_redis(ledger.lineage)
    checkpoints = replace(checkpoints, is_ours=partial(_is_ours, lineage, position.intended))
    _own_folders(folder, serving.record)
    archived = partial(is_archived, folder)
    done = await compute.run(take_up, learner, checkpoints, position, lineage, archived, manifest, log)
    log.info("model_ready", run=serving.run, device=str(device), dtype=settings.model.dtype, step=done)
    buffer = await _open_buffer(serving, lineage)
    is_stopping = partial(_is_stopping, Runs(redis), serving.run, await_redis)
    gate = EvaluationGate(redis, settings, is_stopping, await_redis, log)
    publisher = open_publisher(serving, ledger) if settings.kind == "rl" else None
    weights, counted = published_weights(learner, settings.weights), CountedVersions(ledger, await_redis)
    memory = take_turns(engines, learner, device, compute)
    versions = PublishedVersions(publisher, weights, compute, gate, position.told, memory) if publisher else counted
    writer = CheckpointWriter(checkpoints, compute, log)
    archive = StepArchive(redis, keys, ledger, folder) if settings.trainer.archive else None
    loop = TrainingLoop(
        steps=settings.trainer.steps,
        seed=settings.seed,
        checkpoint_every=settings.trainer.checkpoint_every,
        export_every=settings.trainer.export_every,
        folder=folder,
        buffer=buffer,
        ledger=ledger,
        on_disk=LedgerOnDisk(redis, keys, log),
        fetch=partial(fetch_step, redis, keys, folder),
        share=partial(team.share, settings),
        learner=learner,
        ranks=team.ranks.size,
        watch=watch_of(serving.run, settings, partial(tell, redis, serving.run, log)),
        versions=versions,
        writer=writer,
        manifest=manifest,
        retention=Retention(redis, keys, ledger, archive),
        stored=StoredLimit(Ledger(redis, keys), settings),
        lineage=lineage,
        go_back=GoBack(ledger, checkpoints, lineage, settings, archived, partial(tell, redis, serving.run, log)),
        compute=compute,
        is_stopping=is_stopping,
        redis=await_redis,
        log=log,
    )
    background = [buffer.keep_leases, metrics.follow, *([publisher.serve_joiners] if publisher else [])]
    close = partial(_close, versions, publisher, writer, metrics)
    return PreparedRun(loop, done, gate, metrics, learner, folder, background, close)


def _own_folders(folder: Path, record: RunRecord) -> None:
    """Set aside what an earlier run of the same name left in those that this one writes to."""
    open_archive(folder, owner_of(record))
    if record.settings.trainer.export_every:
        own_folder(folder / EXPORTS, record)


def _is_ours(lineage: Lineage, intended: int, step: int) -> bool:
    """Whether the state after a step is on the way to the newest recorded one, or comes after it."""
    return step > intended or lineage.includes(intended, step)


async def _open_buffer(serving: Serving, lineage: Lineage) -> SampleBuffer:
    policy = _policy(serving.record.settings, lineage)
    buffer = SampleBuffer(_groups(serving), Keys(serving.run), policy, serving.await_redis())
    await buffer.open()
    return buffer


def _policy(settings: RunSettings, lineage: Lineage) -> BatchPolicy:
    rollout, is_rl = settings.rollout, settings.kind == "rl"
    return BatchPolicy(
        groups_per_step=rollout.groups_per_step,
        max_staleness=rollout.max_staleness if is_rl else None,
        staleness=rollout.staleness_policy if is_rl else "wait",  # rows in order: the same run each time
        select=load_selection(rollout.selection),
        since=max(lineage.rollbacks, default=0) if is_rl else 0,
    )


def _groups(serving: Serving) -> Stream[GroupReady]:
    delivery = Delivery(serving.record.settings.delivery.lease_s, NEVER)
    return Stream(serving.redis, serving.run, GROUPS, serving.place.name, delivery)


async def _is_stopping(runs: Runs, run: str, redis: AwaitRedis) -> bool:
    record = await redis(lambda: runs.get(run))
    return record is not None and record.state == "stopping"


async def _close(
    versions: PublishedVersions | CountedVersions,
    publisher: WeightService | None,
    writer: CheckpointWriter,
    metrics: MetricsWriter,
) -> None:
    """Close each of them, even if the one before fails or the wait for it is cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        if publisher is not None:
            stack.push_async_callback(publisher.close)
        stack.push_async_callback(metrics.close)
        stack.push_async_callback(writer.close)
        stack.push_async_callback(versions.close)
