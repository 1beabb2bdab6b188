"""One snapshot and the engines that are up -> one rendezvous: announced, joined, broadcast, answered."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.trainer.gather_engines import Engines, Gathering
from services.trainer.rendezvous import Communicator, MeetingPoint, in_thread
from services.trainer.stage_weights import Staged
from services.trainer.step_ledger import StepLedger
from shared.enrolment import Part
from shared.logs import Log
from shared.messages import Rendezvous, WeightVersion
from shared.redis_connection import UNREACHABLE

LOOK_S = 0.05
"""Seconds from one look at the broadcast to the next, unless an engine answers."""
CONNECT_S = 5.0
"""Seconds for engines that were told to begin until all are in the group; milliseconds where all are alive."""
GRACE_S = 2.0
"""Seconds for engines to report after the group broke, and for a broadcast to end after it was aborted."""


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
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By phase: enrol, connect, broadcast, lend, prove."""

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
    """Holds the rendezvous and the group of one run. One round at a time."""

    def __init__(self, ledger: StepLedger, host: str, enrol_s: float, update_s: float, log: Log) -> None:
        self.engines = Engines(ledger.redis, ledger.run)
        self._ledger, self._run, self._host, self._log = ledger, ledger.run, host, log
        self._enrol_s, self._update_s = enrol_s, update_s
        self._meeting: MeetingPoint | None = None
        self._group: Communicator | None = None

    async def round(self, staged: Staged, proofs: Proofs) -> Outcome:
        """Offer the version to every engine that is up, until each has ended its part or the deadline has passed."""
        outcome, started = Outcome(), time.monotonic()
        announcement = f"{self._run}-v{staged.version}-{secrets.token_hex(4)}"
        gathering = await self._announce(staged, proofs, announcement)
        outcome.done.update(gathering.holding)
        outcome.seconds["enrol"] = time.monotonic() - started
        if not gathering.waiting:
            return outcome
        try:
            await self._send(staged, gathering, announcement, outcome)
        except (asyncio.CancelledError, *UNREACHABLE):
            self.drop_group()
            raise
        if outcome.failed:
            self.drop_group()
        return outcome

    def drop_group(self) -> None:
        """Break up the group and whatever is under way in it; the next round makes a new one."""
        group, self._group = self._group, None
        if group is not None:
            _abort(group)

    async def _announce(self, staged: Staged, proofs: Proofs, announcement: str) -> Gathering:
        self._meeting = self._meeting or MeetingPoint(self._host)
        enrol_until = time.time() + self._enrol_s
        rendezvous = Rendezvous(
            host=self._meeting.host,
            port=self._meeting.port,
            group_name=announcement,
            backend=staged.buckets.backend,
            enrol_until=enrol_until,
            done_until=enrol_until + self._update_s,
        )
        layout = staged.buckets.layout
        await self._ledger.announce(
            WeightVersion(
                staged.version,
                staged.step,
                layout,
                proofs.checksum,
                proofs.tensor_checksums,
                rendezvous,
                proofs.engine_device,
            )
        )
        return await self.engines.gather(staged.version, proofs.checksum, announcement, enrol_until)

    async def _send(self, staged: Staged, gathering: Gathering, announcement: str, outcome: Outcome) -> None:
        """Broadcast to the engines that wait, and sort them into done and failed."""
        started = time.monotonic()
        until = started + self._update_s
        group = self._group
        if group is None or group.members != gathering.members or gathering.joined != frozenset({group.name}):
            self.drop_group()
            await self.engines.start(staged.version, gathering, announcement)
            try:
                group = await self._connect(announcement, gathering, staged.buckets.backend)
            except RuntimeError as error:
                if self._meeting is not None:
                    self._meeting.close(error)
                self._meeting = None
                outcome.failed.update(dict.fromkeys(gathering.waiting, f"the engines did not all join: {error}"))
                return
        else:
            await self.engines.start(staged.version, gathering, group.name)
        outcome.seconds["connect"] = (connected := time.monotonic()) - started
        sending = in_thread(lambda: group.broadcast(staged.buckets))

        def sent(future: "asyncio.Future[None]") -> None:
            outcome.seconds.setdefault("broadcast", time.monotonic() - connected)
            future.exception()  # looked at below where it matters; a broadcast may end after it was given up

        sending.add_done_callback(sent)
        parts = await self._follow(sending, group, staged.version, announcement, gathering, until)
        outcome.seconds["prove"] = time.monotonic() - connected - outcome.seconds.get("broadcast", 0.0)
        outcome.sort(gathering.waiting, parts, self.engines)

    async def _connect(self, name: str, gathering: Gathering, backend: str) -> Communicator:
        meeting = self._meeting
        assert meeting is not None, "a version is announced before engines are connected"
        wait_s = min(CONNECT_S, self._update_s)
        group = await in_thread(lambda: Communicator(meeting, name, gathering.members, backend, wait_s))
        self._group = group
        return group

    async def _follow(
        self,
        sending: "asyncio.Future[None]",
        group: Communicator,
        version: int,
        announcement: str,
        gathering: Gathering,
        until: float,
    ) -> dict[str, Part]:
        """Wait for the engines' answers; break the group up when one of them cannot go on, so that none is stuck."""
        names, broken = gathering.waiting.keys(), False
        while True:
            parts = await self.engines.ended(version, announcement, names)
            failed = any(part.state != "done" for part in parts.values()) or (sending.done() and sending.exception())
            late = time.monotonic() > until
            if len(parts) == len(names) or late:
                break
            if failed and not broken:
                broken, until = True, min(until, time.monotonic() + GRACE_S)
                _abort(group)
            await self.engines.wait(version, LOOK_S)
        if not sending.done():
            _abort(group)
            await asyncio.wait([sending], timeout=GRACE_S)
        if sending.done() and sending.exception():
            self._log.warning("broadcast_broken", run=self._run, version=version, error=str(sending.exception()))
        return parts


def _abort(group: Communicator) -> None:
    """In a thread of its own: breaking a group up may block for as long as somebody is stuck in it."""
    in_thread(group.abort).add_done_callback(asyncio.Future.exception)
