"""A snapshot -> a version that engines were told of, by whatever way it comes to them, and which of them answered."""

import secrets
import time
from dataclasses import dataclass

from services.trainer.gather_engines import Engines, Gathering
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from shared.messages import Rendezvous, WeightFiles, WeightVersion


@dataclass(frozen=True, slots=True)
class Proofs:
    """What engines must come to hold."""

    checksum: str
    tensor_checksums: dict[str, str]
    engine_device: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A version as it was announced."""

    staged: Staged
    announcement: str
    until: float
    """Seconds since the epoch in which all engines must have it."""

    @property
    def left_s(self) -> float:
        return self.until - time.time()


class Announcer:
    """Announces the versions of one run."""

    def __init__(self, ledger: StepLedger, engines: Engines, enrol_s: float) -> None:
        """`enrol_s`: seconds for engines to answer an announcement."""
        self._ledger, self._engines, self._enrol_s = ledger, engines, enrol_s

    async def announce(
        self,
        staged: Staged,
        proofs: Proofs,
        until: float,
        place: tuple[str, int, str],
        files: WeightFiles | None = None,
    ) -> tuple[Offer, Gathering]:
        """Returns when all engines that are up have answered, or the time for it is over.

        Args:
            until: seconds since the epoch in which engines must have the version.
            place: host, port and backend of the rendezvous; port 0 where there is none.
            files: where the version lies, if it comes in files.
        """
        offer = Offer(staged, f"{self._ledger.run}-v{staged.version}-{secrets.token_hex(4)}", until)
        enrol_until, (host, port, backend) = min(time.time() + self._enrol_s, until), place
        await self._ledger.announce(
            WeightVersion(
                staged.version,
                staged.step,
                staged.buckets.layout,
                proofs.checksum,
                proofs.tensor_checksums,
                Rendezvous(host, port, offer.announcement, backend, enrol_until, until),
                proofs.engine_device,
                files,
            )
        )
        return offer, await self._engines.gather(staged.version, proofs.checksum, offer.announcement, enrol_until)
