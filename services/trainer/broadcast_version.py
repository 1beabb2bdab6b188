"""One snapshot and the engines that are up -> one rendezvous: announced, answered, and sent in waves."""

import asyncio
import time
from collections.abc import Collection
from functools import partial

from services.trainer.announce_version import Announcer, Offer, Proofs
from services.trainer.gather_engines import Engines, Gathering
from services.trainer.kept_groups import KeptGroups
from services.trainer.plan_waves import Party, Wave
from services.trainer.round_outcome import Outcome
from services.trainer.send_party import PartySender
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from services.trainer.walk_waves import WaveWalk
from shared.enrolment import Word
from shared.logs import Log
from shared.redis_connection import UNREACHABLE
from shared.tasks import end


class Broadcaster:
    """See Transport: the rendezvous and the groups of one run."""

    def __init__(self, ledger: StepLedger, host: str, enrol_s: float, sizes: tuple[int, int], log: Log) -> None:
        """`sizes`: most engines that are paused at the same time, and that share a group; 0 for all."""
        self.engines, self._waves = Engines(ledger.redis, ledger.run), WaveWalk(*sizes)
        self._announcer = Announcer(ledger, self.engines, enrol_s)
        self._groups = KeptGroups(host)
        self._sender = PartySender(ledger.run, self.engines, self._groups, log)
        self._interrupted: tuple[Offer, Collection[str]] | None = None
        """The round that Redis went away in, and the engines that it was for."""

    async def prepare(self, staged: Staged, proofs: Proofs) -> None:
        """See Transport: the snapshot is all that a broadcast needs."""

    async def round(self, staged: Staged, proofs: Proofs, until: float) -> Outcome:
        """See Transport."""
        outcome, started = Outcome(), time.monotonic()
        meeting = self._groups.meeting()
        place = (meeting.host, meeting.port, staged.buckets.backend)
        offer, gathering = await self._announcer.announce(staged, proofs, until, place)
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = time.monotonic() - started
        try:
            self._groups.keep_only([*gathering.members, *Gathering(gathering.holding, {}).members])
            give = partial(self._send_wave, offer, outcome)
            await self._waves.walk(gathering, outcome, give, self._groups.members)
        except (asyncio.CancelledError, *UNREACHABLE):
            self._groups.drop_all()
            self._interrupted = offer, gathering.waiting.keys()
            raise
        return outcome

    async def set_free(self) -> None:
        """See Transport: who is paused since Redis went away would wait for a word until it loses hope."""
        if self._interrupted is not None:
            offer, names = self._interrupted
            await self.engines.say(offer.staged.version, names, Word(offer.announcement, "over"))
            self._interrupted = None

    def drop_group(self) -> None:
        """See Transport."""
        self._groups.drop_all()

    async def _send_wave(self, offer: Offer, outcome: Outcome, wave: Wave) -> None:
        """Send to the engines of a wave, to each party by itself."""
        sending = [asyncio.create_task(self._send_party(offer, party)) for party in wave.parties]
        try:
            sent = await asyncio.gather(*sending)
        finally:
            await end(*sending)
        outcome.merge([each for each, _ in sent])
        self._groups.meet_anew(failure for _, failure in sent if failure is not None)

    async def _send_party(self, offer: Offer, party: Party) -> tuple[Outcome, RuntimeError | None]:
        """What became of the party, and why its group could not be made."""
        outcome, failure, waiting = Outcome(), None, party.gathering.waiting
        name = f"{offer.announcement}-{min(waiting)}"
        try:
            outcome.sort(waiting, await self._sender.send(offer, party, name, outcome.seconds), self.engines)
        except RuntimeError as error:
            failure = error
            outcome.failed.update(dict.fromkeys(waiting, f"the engines did not all join: {error}"))
        if outcome.failed:
            self._groups.drop(party.group or name)
        return outcome, failure
