"""A run's settings -> everything that its training loop needs: model, optimizer, newest checkpoint, streams."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from services.trainer.algorithm import choose_algorithm
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.checkpoint import Checkpoints
from services.trainer.compute_thread import ComputeThread
from services.trainer.evaluation_gate import EvaluationGate
from services.trainer.fetch_payloads import fetch_rollouts
from services.trainer.load_model import choose_device, load_policy
from services.trainer.loop import TrainingLoop
from services.trainer.publish_versions import CountedVersions, PublishedVersions, Publisher
from services.trainer.retention import Retention
from services.trainer.sample_buffer import SampleBuffer
from services.trainer.schedule import learning_rate
from services.trainer.step_ledger import StepLedger
from services.trainer.train_step import StepTrainer
from shared.messages import GroupReady
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.service import Serving, run_folder
from shared.streams import Delivery, Stream
from shared.topology import GROUPS, Keys


class WeightService(Publisher, Protocol):
    """A publisher with what it does beside publishing."""

    async def serve_joiners(self) -> None: ...

    async def close(self) -> None: ...


OpenPublisher = Callable[[Serving], WeightService]


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """One run, ready to be trained."""

    loop: TrainingLoop
    done: int
    """Steps that the newest checkpoint covers."""
    gate: EvaluationGate
    backend: TorchBackend
    folder: Path
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]]
    """To be run beside the loop, until it ends."""
    close: Callable[[], Awaitable[None]]


async def prepare_run(serving: Serving, compute: ComputeThread, open_publisher: OpenPublisher) -> PreparedRun:
    """Build a run and take up its newest checkpoint; RunRejected if its model or checkpoint cannot be used."""
    settings, redis, log = serving.record.settings, serving.redis, serving.place.log
    keys, ledger = Keys(serving.run), StepLedger(redis, serving.run)
    folder = run_folder(serving.place.deployment, serving.run)
    checkpoints = Checkpoints(
        folder / "checkpoints", f"{serving.record.created:.6f}", settings.trainer.keep_checkpoints, log
    )
    device = choose_device(settings.engine.device)
    backend = await compute.run(_open_backend, settings, device)
    done = await compute.run(_take_up, backend, checkpoints)
    log.info("model_ready", run=serving.run, device=str(device), dtype=settings.model.dtype, step=done)

    buffer = SampleBuffer(_groups(serving), keys, settings.rollout.groups_per_step, log)
    await buffer.open()
    is_stopping = partial(_is_stopping, Runs(redis), serving.run)
    gate = EvaluationGate(redis, settings, is_stopping, log)
    publisher = open_publisher(serving) if settings.kind == "rl" else None
    versions = await _versions(Ledger(redis, keys), publisher, backend, compute, gate)
    loop = TrainingLoop(
        steps=settings.trainer.steps,
        seed=settings.seed,
        checkpoint_every=settings.trainer.checkpoint_every,
        buffer=buffer,
        ledger=ledger,
        fetch=partial(fetch_rollouts, redis, keys),
        trainer=_step_trainer(settings, backend),
        versions=versions,
        backend=backend,
        checkpoints=checkpoints,
        retention=Retention(redis, keys, ledger),
        compute=compute,
        is_stopping=is_stopping,
        log=log,
    )
    background = [buffer.keep_leases, *([publisher.serve_joiners] if publisher else [])]
    return PreparedRun(loop, done, gate, backend, folder, background, partial(_close, versions, publisher))


def _groups(serving: Serving) -> Stream[GroupReady]:
    settings = serving.record.settings.delivery
    delivery = Delivery(settings.lease_s, settings.max_deliveries)
    return Stream(serving.redis, serving.run, GROUPS, serving.place.name, delivery)


async def _versions(
    ledger: Ledger, publisher: Publisher | None, backend: TorchBackend, compute: ComputeThread, gate: EvaluationGate
) -> PublishedVersions | CountedVersions:
    if publisher is None:
        return CountedVersions(ledger)
    told = (await ledger.counters()).get("weight_version", -1)
    return PublishedVersions(publisher, backend, compute, gate, told)


def _open_backend(settings: RunSettings, device: torch.device) -> TorchBackend:
    trainer, folder = settings.trainer, Path(settings.model.path).expanduser()
    policy = load_policy(folder, settings.model.trust_remote_code, choose_algorithm(settings).temperature, device)
    adamw = AdamW(
        (trainer.adam_beta1, trainer.adam_beta2), trainer.adam_epsilon, trainer.weight_decay, trainer.max_grad_norm
    )
    return TorchBackend(policy, getattr(torch, settings.model.dtype), adamw, folder)


def _take_up(backend: TorchBackend, checkpoints: Checkpoints) -> int:
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return 0
    backend.load_state(checkpoint.state)
    return checkpoint.step


def _step_trainer(settings: RunSettings, backend: TorchBackend) -> StepTrainer:
    trainer = settings.trainer
    rate = partial(
        learning_rate,
        steps=trainer.steps,
        peak=trainer.learning_rate,
        warmup=trainer.warmup_steps,
        shape=trainer.schedule,
        min_ratio=trainer.min_learning_rate_ratio,
    )
    return StepTrainer(
        backend, choose_algorithm(settings), rate, trainer.max_tokens_per_micro_batch, settings.kind == "rl"
    )


async def _is_stopping(runs: Runs, run: str) -> bool:
    record = await runs.get(run)
    return record is not None and record.state == "stopping"


async def _close(versions: PublishedVersions | CountedVersions, publisher: WeightService | None) -> None:
    await versions.close()
    if publisher is not None:
        await publisher.close()
