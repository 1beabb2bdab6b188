"""What a run stores in Redis -> whether a trainer that waits for groups has to make room for them."""

from dataclasses import dataclass

from shared.admission import is_full
from shared.run_settings import RunSettings
from shared.scripts import Ledger


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """rollout.max_stored_mib, as the trainer sees it: it is the one who can let trained groups leave Redis."""

    ledger: Ledger
    settings: RunSettings

    async def holds_back(self, done: int) -> bool:
        """True if groups that the step after `done` needs are not released, and trained ones take their room."""
        counts = await self.ledger.counters()
        needed = (done + 1) * self.settings.rollout.groups_per_step
        return (
            is_full(self.settings, counts.get("stored_bytes", 0))
            and counts.get("forgotten_step", 0) < done
            and counts.get("released", 0) - counts.get("dropped", 0) < needed
        )
