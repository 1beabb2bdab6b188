"""Scored groups -> optimizer steps, commits, weight versions and checkpoints, until all steps are done or a stop."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.compute_thread import ComputeThread
from services.trainer.export_model import EXPORTS, export_model
from services.trainer.learner import Learner
from services.trainer.ledger_on_disk import LedgerOnDisk
from services.trainer.publish_versions import Versions
from services.trainer.retention import Retention
from services.trainer.roll_back import GoBack, WentBack
from services.trainer.sample_buffer import SampleBuffer
from services.trainer.share_step import Attempts, Share
from services.trainer.step_clock import StepClock
from services.trainer.step_ledger import StepLedger
from services.trainer.stored_limit import StoredLimit
from services.trainer.take_up import Manifest
from services.trainer.watch_steps import StepWatch, was_skipped
from shared.await_redis import AwaitRedis
from shared.errors import RunRejected
from shared.lineage import Lineage
from shared.logs import Log
from shared.messages import Rollout, StepIntent
from shared.tasks import end

POLL_S = 0.5
ROLLED_BACK_TO = "rolled_back_to"
"""The metric of a step that trains nothing: the version whose weights it has."""
STOP_GRACE_S = 10.0
"""Seconds that a publication in flight gets when the run is to stop; it may be waiting for an engine to come up."""


@dataclass
class Progress:
    """Where the trainer is."""

    step: int = 0
    """Steps that the weights in memory have seen."""
    saved: int = 0
    """Steps that the newest checkpoint covers, which may still be written."""
    skipped: int = 0
    """Steps of which an update was left out."""


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """One run's training; every part knows its own settings.

    Redis may go away at any moment: every call waits for it and is done again, which all of them bear. LedgerBehind
    says that what came back knows less than this loop has done.
    """

    steps: int
    seed: int
    checkpoint_every: int
    export_every: int
    """0 for never."""
    folder: Path
    """The run's."""
    buffer: SampleBuffer
    ledger: StepLedger
    on_disk: LedgerOnDisk
    share: Callable[[StepIntent], Share]
    """What this rank trains of a step."""
    fetch: Callable[[StepIntent, Attempts], Awaitable[list[Rollout]]]
    learner: Learner
    ranks: int
    """Processes, one a GPU, that train together."""
    watch: StepWatch
    versions: Versions
    writer: CheckpointWriter
    manifest: Manifest
    retention: Retention
    stored: StoredLimit
    lineage: Lineage
    """As it was when the run was taken up: a rollback ends the loop."""
    go_back: GoBack
    compute: ComputeThread
    is_stopping: Callable[[], Awaitable[bool]]
    redis: AwaitRedis
    log: Log
    progress: Progress = field(default_factory=Progress)
    clock: StepClock = field(default_factory=StepClock)

    async def run(self, done: int) -> int:
        """Train from the state after `done` steps; returns the number of steps done at the end, all durable.

        Raises:
            LedgerBehind: Redis lost steps that the weights in memory have seen.
            FencedOut: another trainer took the run over.
            RunRejected: a step is not what the run asserts; it is recorded, and neither committed nor published.
            WentBack: a rollback was asked for, and is recorded.
        """
        recorded = await self.redis(lambda: self.ledger.intents(after=done))
        self.progress.step = self.progress.saved = done
        self.progress.skipped = await self.redis(lambda: self._skipped_until(done))
        self.clock.take()
        await self._offer(done)
        self.clock.lap("publish")
        for intent in recorded:
            if self.lineage.includes(recorded[-1].step, intent.step):
                await self._step(intent)
        while self.progress.step < self.steps and (intent := await self._next_intent(self.progress.step + 1)):
            await self._step(intent)
        done = self.progress.step
        if done == self.steps:
            await self._settle()
        else:
            await self.versions.close(STOP_GRACE_S)
        if self.progress.saved < done:
            await self._checkpoint(done)
        await self.writer.settle()
        await self._let_go()
        await self.redis(self.retention.archive_rest)
        return done

    async def _settle(self) -> None:
        """Wait until the last version is published; no longer than STOP_GRACE_S once the run is to stop."""
        settling = asyncio.create_task(self.versions.settle())
        try:
            while not (await asyncio.wait([settling], timeout=POLL_S))[0]:
                if await self.is_stopping():
                    return await self.versions.close(STOP_GRACE_S)
            await settling
        finally:
            await end(settling)

    async def _next_intent(self, step: int) -> StepIntent | None:
        """The next step's groups, recorded and acknowledged; None if the run is to stop."""
        groups = None
        while groups is None:
            if await self.redis(self.go_back.is_asked):
                await self._go_back()
            groups = await self.buffer.next_batch(step - 1, self._leave)
            if groups is None and await self.is_stopping():
                return None
        ids, lengths = [group.body.group_id for group in groups], [group.body.lengths for group in groups]
        intent = StepIntent(step, ids, step - 1, self.seed + step, lengths)
        stale = self.buffer.count_stale(groups, step - 1)
        await self.redis(lambda: self.ledger.intend(intent, groups, stale))
        return intent

    async def _go_back(self) -> None:
        """Leave the loop for an older version, unless that cannot be had."""
        await self.writer.settle()  # the checkpoint that the old version is taken from must not make room for another
        if await self.redis(lambda: self.go_back.record(self.progress.step, self.seed + self.progress.step + 1)):
            await self.versions.close(STOP_GRACE_S)  # an engine that is cut off in the middle would serve nobody
            raise WentBack

    async def _step(self, intent: StepIntent) -> None:
        """Train, commit, offer and keep one recorded step."""
        metrics = await self._train(intent)
        self.progress.step = intent.step
        is_new = await self.redis(lambda: self.ledger.commit(intent, metrics, int(metrics.get("tokens", 0))))
        if is_new:
            await self.watch.report(intent.step, metrics)
        await self._offer(intent.step)
        self.log.info("step_done", step=intent.step, **metrics)
        self.clock.lap("publish")
        await self._keep(intent.step)

    async def _offer(self, version: int) -> None:
        """Older weights are not kept waiting by the evaluation of those that they are to replace."""
        await self.versions.offer(version, at_once=version in self.lineage.rollbacks)

    async def _keep(self, step: int) -> None:
        """Export and checkpoint where they are due: a checkpoint, from which no step is done again, goes last.

        One is due behind a rollback, or whoever takes the run up again would have to go back again.
        """
        if self.export_every and step % self.export_every == 0:
            await self.compute.run(export_model, self.learner, self.folder / EXPORTS / f"step_{step:06d}")
            self.clock.lap("checkpoint")
        if step % self.checkpoint_every == 0 or step == self.steps or step in self.lineage.rollbacks:
            await self._checkpoint(step)
            self.clock.lap("checkpoint")

    async def _fetch(self, intent: StepIntent, wanted: Attempts) -> list[Rollout]:
        """What is gone with the record of the step was lost by Redis: LedgerBehind, and not the end of the run."""
        try:
            return await self.fetch(intent, wanted)
        except RunRejected:
            await self.ledger.check(intent.step - 1, intent.step)
            raise

    async def _train(self, intent: StepIntent) -> dict[str, float]:
        self.clock.lap("wait")
        metrics = await self._learn(intent)
        seconds = self.clock.take()
        if "tokens" in metrics:
            rate = metrics["tokens"] / max(seconds["seconds_total"], 1e-9)
            metrics |= {"tokens_per_second": rate, "tokens_per_second_per_gpu": rate / self.ranks}
        found = {**metrics, **seconds, "steps_skipped": float(self.progress.skipped)}
        # JSON has no name for a number that is not finite; a skipped step says so by step_skipped
        return {name: value for name, value in found.items() if math.isfinite(value)}

    async def _learn(self, intent: StepIntent) -> dict[str, float]:
        """A rollback finds the models in the state that it goes back to: steps are done in the order of the lineage."""
        if intent.is_rollback:
            return {ROLLED_BACK_TO: float(intent.weight_version)}
        share = self.share(intent)
        rollouts = await self.redis(lambda: self._fetch(intent, share.attempts))
        self.clock.lap("fetch")
        await self.versions.make_way()
        self.clock.lap("memory")
        metrics = await self.compute.run(self.learner.train, rollouts, intent, share)
        self.clock.lap("train")
        self.watch.check(intent.step, metrics)
        self.progress.skipped += was_skipped(metrics)
        return metrics

    async def _skipped_until(self, done: int) -> int:
        """What the commit of a step counted; 0 where this run's ledger does not have it, as a branch at its begin."""
        found = await self.ledger.metrics(done - 1, done) if done else {}
        return int(found.get(done, {}).get("steps_skipped", 0))

    async def _checkpoint(self, step: int) -> None:
        """Copy the state once the ledger that it belongs to is on disk; it is written while the next steps train."""
        await self.redis(lambda: self.on_disk.wait(step))
        await self.redis(lambda: self.ledger.check(step))  # Redis may have come back without the step meanwhile
        position = await self.redis(self.ledger.position)
        await self.writer.begin(step, self.learner, self.manifest.of(position), self._let_go)
        self.progress.saved = step

    async def _let_go(self) -> None:
        """Remove what the newest checkpoints make superfluous; at the end of a run what a kill left to do of it."""
        covered = await self.writer.remove_old()
        await self.redis(lambda: self.retention.forget(covered))

    async def _leave(self) -> bool:
        self.versions.check()
        self.writer.check()
        await self.redis(lambda: self.ledger.check(self.progress.step))
        await self._make_room(self.progress.step)
        return await self.is_stopping() or await self.redis(self.go_back.is_asked)

    async def _make_room(self, done: int) -> None:
        """While the next groups are held back for what is stored: a checkpoint at once, and all that it covers leaves.

        Groups that only the newest checkpoint covers go last, for without them an older one cannot stand in for it.
        """
        if not await self.redis(lambda: self.stored.holds_back(done)):
            return
        if self.progress.saved < done:
            await self._checkpoint(done)
        await self.writer.settle()
        if await self.redis(lambda: self.stored.holds_back(done)):
            await self.redis(lambda: self.retention.forget(done))
            self.log.warning("groups_left_early", step=done, reason="rollout.max_stored_mib")
