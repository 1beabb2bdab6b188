"""One snapshot and the engines of this machine -> each told where it lies, and what became of it there."""

import secrets
import time
from collections.abc import Mapping

from services.trainer.beside_training import BesideTraining
from services.trainer.broadcast_version import Outcome, Proofs
from services.trainer.gather_engines import Engines, Gathering
from services.trainer.lend_memory import LentMemory
from services.trainer.rendezvous import in_thread
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from services.trainer.weight_buckets import WeightBuckets
from shared.enrolment import Part
from shared.memory_handle import MemoryHandle, machine_id
from shared.messages import Rendezvous, WeightVersion

LOOK_S = 0.25


class Lender:
    """Lends the versions of one run. One round at a time."""

    def __init__(self, ledger: StepLedger, enrol_s: float, update_s: float) -> None:
        self.engines = Engines(ledger.redis, ledger.run)
        self._ledger, self._run, self._enrol_s, self._update_s = ledger, ledger.run, enrol_s, update_s
        self._beside, self._lent = BesideTraining(), LentMemory()

    async def round(self, staged: Staged, proofs: Proofs) -> Outcome:
        """Offer the version to every engine that is up, until each has ended its part or the deadline has passed."""
        outcome, started = Outcome(), time.monotonic()
        announcement = f"{self._run}-v{staged.version}-{secrets.token_hex(4)}"
        gathering = await self._announce(staged, proofs, announcement)
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = (enrolled := time.monotonic()) - started
        if not gathering.waiting:
            return outcome
        ranks = {name: part.ranks for name, part in gathering.waiting.items()}
        handles = await in_thread(lambda: self._handles(staged.buckets, ranks))
        outcome.seconds["lend"] = (lent := time.monotonic()) - enrolled
        try:
            await self.engines.start(staged.version, gathering, "", handles)
            parts = await self._follow(staged.version, announcement, gathering)
        finally:
            self._lent.take_back()
        outcome.seconds["prove"] = time.monotonic() - lent
        outcome.sort(gathering.waiting, parts, self.engines)
        return outcome

    def drop_group(self) -> None:
        """Nothing is held between rounds."""

    async def _announce(self, staged: Staged, proofs: Proofs, announcement: str) -> Gathering:
        enrol_until = time.time() + self._enrol_s
        place = Rendezvous(machine_id(), 0, announcement, "ipc", enrol_until, enrol_until + self._update_s)
        await self._ledger.announce(
            WeightVersion(
                staged.version,
                staged.step,
                staged.buckets.layout,
                proofs.checksum,
                proofs.tensor_checksums,
                place,
                proofs.engine_device,
            )
        )
        return await self.engines.gather(staged.version, proofs.checksum, announcement, enrol_until)

    def _handles(self, buckets: WeightBuckets, ranks: Mapping[str, int]) -> dict[str, list[list[MemoryHandle]]]:
        """Of each engine: of every bucket, one for each of its ranks."""
        with self._beside.on(buckets.device):
            return {
                name: [[self._lent.lend(flat) for _ in range(count)] for flat in buckets.flat]
                for name, count in ranks.items()
            }

    async def _follow(self, version: int, announcement: str, gathering: Gathering) -> dict[str, Part]:
        """Wait for the engines' answers, until the deadline."""
        until, names = time.monotonic() + self._update_s, gathering.waiting.keys()
        while True:
            parts = await self.engines.ended(version, announcement, names)
            if len(parts) == len(names) or time.monotonic() > until:
                return parts
            await self.engines.wait(version, LOOK_S)
