"""Scored groups -> optimizer steps, commits, weight versions and checkpoints, until all steps are done or a stop."""

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.trainer.backend import Backend
from services.trainer.checkpoint import Checkpoints
from services.trainer.compute_thread import ComputeThread
from services.trainer.publish_versions import Versions
from services.trainer.retention import Retention
from services.trainer.sample_buffer import SampleBuffer
from services.trainer.step_ledger import StepLedger
from services.trainer.train_step import StepTrainer
from shared.logs import Log
from shared.messages import Rollout, StepIntent

STOP_GRACE_S = 10.0
"""Seconds that a publication in flight gets when the run is to stop; it may be waiting for an engine to come up."""


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """One run's training; every part knows its own settings."""

    steps: int
    seed: int
    checkpoint_every: int
    buffer: SampleBuffer
    ledger: StepLedger
    fetch: Callable[[list[int]], Awaitable[list[Rollout]]]
    trainer: StepTrainer
    versions: Versions
    backend: Backend
    checkpoints: Checkpoints
    retention: Retention
    compute: ComputeThread
    is_stopping: Callable[[], Awaitable[bool]]
    log: Log

    async def run(self, done: int) -> int:
        """Train from the state after `done` steps; returns the number of steps done at the end, all durable."""
        recorded = {intent.step: intent for intent in await self.ledger.intents(after=done)}
        await self.versions.offer(done)
        saved = done
        for step in range(done + 1, self.steps + 1):
            begun = time.monotonic()
            intent = recorded.get(step) or await self._next_intent(step)
            if intent is None:
                break
            metrics = await self._train(intent, begun)
            await self.ledger.commit(step, metrics, len(intent.group_ids), int(metrics["tokens"]))
            await self.versions.offer(step)
            self.log.info("step_done", step=step, **metrics)
            done = step
            if step % self.checkpoint_every == 0 or step == self.steps:
                saved = await self._checkpoint(step)
        if done == self.steps:
            await self.versions.settle()
        else:
            await self.versions.close(STOP_GRACE_S)
        if saved < done:
            await self._checkpoint(done)
        return done

    async def _next_intent(self, step: int) -> StepIntent | None:
        """The next step's groups, recorded and acknowledged; None if the run is to stop."""
        groups = await self.buffer.next_batch(self._leave)
        if groups is None:
            return None
        intent = StepIntent(step, [group.body.group_id for group in groups], step - 1, self.seed + step)
        await self.ledger.intend(intent, groups)
        return intent

    async def _train(self, intent: StepIntent, begun: float) -> dict[str, float]:
        received = time.monotonic()
        rollouts = await self.fetch(intent.group_ids)
        fetched = time.monotonic()
        metrics = await self.compute.run(self.trainer.train, rollouts, intent)
        trained = time.monotonic()
        seconds = {
            "seconds_wait": received - begun,
            "seconds_fetch": fetched - received,
            "seconds_train": trained - fetched,
            "seconds_total": trained - begun,
        }
        rate = metrics["tokens"] / max(trained - begun, 1e-9)
        # JSON has no name for a number that is not finite; a skipped step says so by step_skipped
        return {k: v for k, v in {**metrics, **seconds, "tokens_per_second": rate}.items() if math.isfinite(v)}

    async def _checkpoint(self, step: int) -> int:
        begun = time.monotonic()
        await self.compute.run(self.checkpoints.save, step, self.backend.state())
        await self.retention.forget(self.checkpoints.covered())
        self.log.info("checkpoint_saved", step=step, seconds=time.monotonic() - begun)
        return step

    async def _leave(self) -> bool:
        self.versions.check()
        return await self.is_stopping()
