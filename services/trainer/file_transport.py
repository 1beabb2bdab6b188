"""One snapshot and the engines that are up -> files in a folder that both see: written, announced, taken, pruned."""

import asyncio
import time
from functools import partial

from services.trainer.announce_version import Announcer, Offer, Proofs
from services.trainer.gather_engines import Engines
from services.trainer.plan_waves import Wave
from services.trainer.rendezvous import in_thread
from services.trainer.round_outcome import Outcome
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from services.trainer.tell import tell
from services.trainer.version_names import VersionName, superfluous
from services.trainer.version_writer import VersionWriter
from services.trainer.walk_waves import WaveWalk
from shared.errors import SluiceError
from shared.logs import Log
from shared.messages import WeightFiles
from shared.weight_store import ASIDE

WRITE_TRIES = 4
WRITE_PAUSE_S = 2.0
"""Seconds before the second try; each further pause is twice as long."""


class FileTransport:
    """See Transport. A version is written once, and announced as often as engines ask for it.

    Where an engine found its files damaged or incomplete, the next round writes it again, in full.
    """

    def __init__(
        self, ledger: StepLedger, writer: VersionWriter, keep: int, enrol_s: float, max_unavailable: int, log: Log
    ) -> None:
        """Of the arguments that say nothing by their names:

        Args:
            keep: newest versions that stay in the store, with all that they build on.
            max_unavailable: engines that take a version at the same time; 0 for all.
        """
        self.engines, self._waves = Engines(ledger.redis, ledger.run), WaveWalk(max_unavailable)
        self._announcer = Announcer(ledger, self.engines, enrol_s)
        self._ledger, self._writer, self._keep, self._log = ledger, writer, keep, log
        self._written: tuple[int, str, WeightFiles] | None = None
        """Version, checksum and files of the one that was written last."""
        self._refused, self._write_s = False, 0.0

    async def prepare(self, staged: Staged, proofs: Proofs) -> None:
        """See Transport.

        Raises:
            SluiceError: the store cannot be written to.
        """
        await self._files_of(staged, proofs.checksum)

    async def round(self, staged: Staged, proofs: Proofs, until: float) -> Outcome:
        """See Transport.

        Raises:
            SluiceError: the store cannot be written to.
        """
        outcome, files = Outcome(), await self._files_of(staged, proofs.checksum)
        outcome.seconds["write"], self._write_s, written = self._write_s, 0.0, time.monotonic()
        offer, gathering = await self._announcer.announce(staged, proofs, until, ("", 0, "files"), files)
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = (enrolled := time.monotonic()) - written
        await self._waves.walk(gathering, outcome, partial(self._offer, offer, outcome))
        outcome.seconds["prove"] = time.monotonic() - enrolled
        await self._prune()
        return outcome

    async def set_free(self) -> None:
        """See Transport: no engine waits for others here."""

    def drop_group(self) -> None:
        """See Transport: nothing is held."""

    async def _files_of(self, staged: Staged, checksum: str) -> WeightFiles:
        last = self._written
        if last is not None and last[:2] == (staged.version, checksum) and not self._refused:
            return last[2]
        started = time.monotonic()
        files = await self._write(staged, checksum)
        self._written, self._refused = (staged.version, checksum, files), False
        self._write_s = time.monotonic() - started
        return files

    async def _write(self, staged: Staged, checksum: str) -> WeightFiles:
        tries, pause_s = 0, WRITE_PAUSE_S
        while True:
            try:
                return await in_thread(lambda: self._writer.write(staged, checksum, in_full=self._refused))
            except OSError as error:
                tries += 1
                where = self._writer.store.url
                detail = {"version": staged.version, "folder": where, "reason": str(error)}
                await tell(self._ledger.redis, self._ledger.run, self._log, "weights_not_written", detail)
                if tries == WRITE_TRIES:
                    raise SluiceError(
                        f"weight version {staged.version} cannot be written to {where}: {error}; make room there, or"
                        " set weights.folder of the next run"
                    ) from error
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _offer(self, offer: Offer, outcome: Outcome, wave: Wave) -> None:
        """Have the engines of a wave take the files, and sort them as they end."""
        names, version = wave.gathering.waiting.keys(), offer.staged.version
        await self.engines.start(version, wave.gathering, offer.announcement)
        parts = await self.engines.all_ended(version, offer.announcement, names, offer.until)
        outcome.sort(names, parts, self.engines)
        self._refused = self._refused or any(part.files_refused for part in parts.values())

    async def _prune(self) -> None:
        """Delete what nobody needs any more. What cannot be deleted now is tried again with the next version."""
        try:
            found = await in_thread(self._look)
            read = await self.engines.at_work({name.version for name in found})
            old = superfluous({name: whole for name, (_, whole) in found.items()}, self._writer.names, self._keep, read)
            await in_thread(lambda: [self._writer.store.remove(found[name][0]) for name in old])
        except OSError as error:
            self._log.warning("weights_not_pruned", run=self._ledger.run, error=str(error))

    def _look(self) -> dict[VersionName, tuple[str, bool]]:
        """What is in the store: the name of its folder, and whether it is whole."""
        store, found = self._writer.store, dict[VersionName, tuple[str, bool]]()
        for folder in store.folders():
            name = VersionName.parse(folder.removeprefix(ASIDE))
            if name is not None:
                found[name] = (folder, not folder.startswith(ASIDE) and store.is_whole(folder))
        return found
