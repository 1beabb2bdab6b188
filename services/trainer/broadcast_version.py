"""One snapshot and the engines that are up -> one rendezvous: announced, answered, and sent in waves."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.trainer.gather_engines import Engines, Gathering
from services.trainer.kept_groups import KeptGroups
from services.trainer.plan_waves import Party, plan_waves
from services.trainer.send_party import Offer, PartySender
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from shared.enrolment import Part
from shared.logs import Log
from shared.messages import Rendezvous, WeightVersion
from shared.redis_connection import UNREACHABLE
from shared.tasks import end


@dataclass(frozen=True, slots=True)
class Proofs:
    """What engines must come to hold."""

    checksum: str
    tensor_checksums: dict[str, str]
    engine_device: str


@dataclass
class Outcome:
    """What became of a version at every engine that took part."""

    done: dict[str, Part] = field(default_factory=dict[str, Part])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Engine -> why it does not have the version."""
    waiting: tuple[str, ...] = ()
    """Engines whose turn did not come in this round: one before them failed, and is to be helped first."""
    setbacks: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(engine, why) of every round in which one failed, also if it has the version by now."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By phase: write, enrol, connect, ready, broadcast, lend, prove; sums over the waves."""

    def merge(self, parties: Iterable["Outcome"]) -> None:
        """Add what became of parties at the same time: a phase took as long as with the slowest of them."""
        together: dict[str, float] = {}
        for party in parties:
            self.done.update(party.done)
            self.failed.update(party.failed)
            for phase, seconds in party.seconds.items():
                together[phase] = max(together.get(phase, 0.0), seconds)
        for phase, seconds in together.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def sort(self, waiting: Iterable[str], parts: Mapping[str, Part], engines: Engines) -> None:
        """Into done and failed, by how the parts of those who took part have ended; nobody waits again for the rest."""
        for name in waiting:
            part = parts.get(name)
            if part is not None and part.state == "done":
                self.done[name] = part
            elif part is not None:
                self.failed[name] = part.reason or "the engine started anew"
            else:
                self.failed[name] = "the engine did not finish in time"
                engines.expect_nothing_of(name)


class Broadcaster:
    """See Transport: the rendezvous and the groups of one run."""

    def __init__(self, ledger: StepLedger, host: str, enrol_s: float, sizes: tuple[int, int], log: Log) -> None:
        """`sizes`: most engines that are paused at the same time, and that share a group; 0 for all."""
        self.engines = Engines(ledger.redis, ledger.run)
        self._ledger, self._run = ledger, ledger.run
        self._enrol_s, (self._max_unavailable, self._per_group) = enrol_s, sizes
        self._groups = KeptGroups(host)
        self._sender = PartySender(ledger.run, self.engines, self._groups, log)
        self._failed: set[str] = set()
        """By the last round; they may be paused, and come first in the next one."""

    async def prepare(self, staged: Staged, proofs: Proofs) -> None:
        """See Transport: the snapshot is all that a broadcast needs."""

    async def round(self, staged: Staged, proofs: Proofs, until: float) -> Outcome:
        """See Transport."""
        outcome, started = Outcome(), time.monotonic()
        offer = Offer(staged, f"{self._run}-v{staged.version}-{secrets.token_hex(4)}", until)
        gathering = await self._announce(offer, proofs)
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = time.monotonic() - started
        try:
            await self._send(offer, gathering, outcome)
        except (asyncio.CancelledError, *UNREACHABLE):
            self._groups.drop_all()
            raise
        self._failed = set(outcome.failed)
        return outcome

    def drop_group(self) -> None:
        """See Transport."""
        self._groups.drop_all()

    async def _announce(self, offer: Offer, proofs: Proofs) -> Gathering:
        meeting, staged, announcement = self._groups.meeting(), offer.staged, offer.announcement
        enrol_until = min(time.time() + self._enrol_s, offer.until)
        backend = staged.buckets.backend
        rendezvous = Rendezvous(meeting.host, meeting.port, announcement, backend, enrol_until, offer.until)
        layout = staged.buckets.layout
        await self._ledger.announce(
            WeightVersion(
                staged.version,
                staged.step,
                layout,
                proofs.checksum,
                proofs.tensor_checksums,
                rendezvous,
                engine_device=proofs.engine_device,
            )
        )
        return await self.engines.gather(staged.version, proofs.checksum, announcement, enrol_until)

    async def _send(self, offer: Offer, gathering: Gathering, outcome: Outcome) -> None:
        """Send to the engines that wait, wave after wave, and sort them into done, failed and those still waiting."""
        self._groups.keep_only([*gathering.members, *Gathering(gathering.holding, {}).members])
        kept = self._groups.members
        left = set(gathering.waiting)
        for wave in plan_waves(gathering, self._max_unavailable, self._failed, self._per_group, kept):
            left -= wave.gathering.waiting.keys()
            sending = [asyncio.create_task(self._send_party(offer, party)) for party in wave.parties]
            try:
                sent = await asyncio.gather(*sending)
            finally:
                await end(*sending)
            outcome.merge([each for each, _ in sent])
            self._groups.meet_anew(failure for _, failure in sent if failure is not None)
            if outcome.failed:
                break
        outcome.waiting = tuple(sorted(left))

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
