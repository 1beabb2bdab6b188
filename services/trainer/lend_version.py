"""One snapshot and the engines of this machine -> each told where it lies, and what became of it there."""

import time
from collections.abc import Mapping
from functools import partial

from services.trainer.announce_version import Announcer, Offer, Proofs
from services.trainer.beside_training import BesideTraining
from services.trainer.gather_engines import Engines
from services.trainer.lend_memory import LentMemory
from services.trainer.plan_waves import Wave
from services.trainer.rendezvous import in_thread
from services.trainer.round_outcome import Outcome
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from services.trainer.walk_waves import WaveWalk
from services.trainer.weight_buckets import WeightBuckets
from shared.laps import Laps
from shared.memory_handle import MemoryHandle, machine_id


class Lender:
    """See Transport. Lends the versions of one run."""

    def __init__(self, ledger: StepLedger, enrol_s: float, max_unavailable: int) -> None:
        """`max_unavailable`: engines that are paused at the same time; 0 for all."""
        self.engines, self._waves = Engines(ledger.redis, ledger.run), WaveWalk(max_unavailable)
        self._announcer = Announcer(ledger, self.engines, enrol_s)
        self._beside, self._lent = BesideTraining(), LentMemory()

    async def prepare(self, staged: Staged, proofs: Proofs) -> None:
        """See Transport: the snapshot is all that is lent."""

    async def round(self, staged: Staged, proofs: Proofs, until: float) -> Outcome:
        """See Transport."""
        outcome, started = Outcome(), time.monotonic()
        offer, gathering = await self._announcer.announce(staged, proofs, until, (machine_id(), 0, "ipc"))
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = time.monotonic() - started
        await self._waves.walk(gathering, outcome, partial(self._lend, offer, outcome))
        return outcome

    async def set_free(self) -> None:
        """See Transport: no engine waits for others here."""

    def drop_group(self) -> None:
        """See Transport: nothing is held."""

    async def _lend(self, offer: Offer, outcome: Outcome, wave: Wave) -> None:
        """Lend the version to one wave, until each of it has answered or the deadline has passed."""
        staged, lap, gathering = offer.staged, Laps(outcome.seconds), wave.gathering
        ranks = {name: part.ranks for name, part in gathering.waiting.items()}
        try:
            handles = await in_thread(lambda: self._handles(staged.buckets, ranks))
            lap("lend")
            await self.engines.start(staged.version, gathering, "", handles)
            parts = await self.engines.all_ended(staged.version, offer.announcement, ranks, offer.until)
        finally:
            self._lent.take_back()
        lap("prove")
        outcome.sort(ranks, parts, self.engines)

    def _handles(self, buckets: WeightBuckets, ranks: Mapping[str, int]) -> dict[str, list[list[MemoryHandle]]]:
        """Of each engine: of every bucket, one for each of its ranks."""
        with self._beside.on(buckets.device):
            return {
                name: [[self._lent.lend(flat) for _ in range(count)] for flat in buckets.flat]
                for name, count in ranks.items()
            }
