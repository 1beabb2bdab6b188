"""A version that a person wants back -> a recorded step that goes back to it, or a refusal that says what can be had.

The step trains nothing, and the state after it is that version's. Nobody changes models in memory for it: whoever
records it lets go of them, and takes the run up anew, as a trainer does that was killed in the middle of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.trainer.checkpoint import UNREADABLE, Checkpoints
from services.trainer.step_ledger import StepLedger
from shared.lineage import Lineage, available, why_gone
from shared.messages import StepIntent
from shared.run_settings import RunSettings

Tell = Callable[[str, dict[str, object]], Awaitable[None]]
"""(event, detail) -> the run's events."""


class WentBack(Exception):
    """A step is recorded that starts from an older version; the models in memory are of no use any more."""


@dataclass(frozen=True, slots=True)
class GoBack:
    """What a trainer does about the rollbacks of its run, between steps."""

    ledger: StepLedger
    checkpoints: Checkpoints
    lineage: Lineage
    settings: RunSettings
    is_archived: Callable[[int], bool]
    tell: Tell

    async def is_asked(self) -> bool:
        """Whether a person waits for a rollback."""
        asked = await self.ledger.rollback()
        return asked is not None and asked.state == "asked"

    async def record(self, done: int, seed: int) -> bool:
        """Record the step after `done` as one that goes back, if a person waits for it; no checkpoint may be under way.

        Returns:
            False if nobody does, or if the version cannot be had, which the person is told.
        """
        asked = await self.ledger.rollback()
        if asked is None or asked.state != "asked":
            return asked is not None and asked.step == done + 1  # recorded, and the answer was lost
        if reason := await self._why_not(asked.version, done):
            await self.ledger.refuse_rollback(asked, reason)
            await self.tell("rollback_refused", {"version": asked.version, "reason": reason})
            return False
        intent = StepIntent(done + 1, [], asked.version, seed)
        await self.ledger.roll_back(intent, self.settings.rollout.groups_per_step, asked)
        await self.tell("rolled_back", {"version": asked.version, "step": intent.step})
        return True

    async def _why_not(self, version: int, done: int) -> str:
        """Empty if the state of the version can be had, from a checkpoint whose files are whole."""
        if version == done:
            return f"version {version} is what the run goes on from anyway"
        branch, forgotten = self.settings.branch, (await self.ledger.position()).forgotten
        first, initial = (branch.step, set[int]()) if branch else (0, {0})
        states = initial | set(self.checkpoints.steps())

        def has_groups(step: int) -> bool:
            return step > forgotten or self.is_archived(step)

        while version in (can := available(self.lineage, first, done, states, has_groups)):
            begin = max(state for state in states if self.lineage.includes(version, state))
            if begin in initial:
                return ""
            try:
                await asyncio.to_thread(self.checkpoints.read, begin)
            except UNREADABLE:
                states.discard(begin)
            else:
                return ""
        return why_gone(version, can)
