"""A snapshot and a party of engines -> what became of each: joined, paused together, broadcast to, answered."""

import asyncio
import contextlib
import time
from collections.abc import Collection

from services.trainer.announce_version import Offer
from services.trainer.clear_engines import clear_engines
from services.trainer.gather_engines import Engines
from services.trainer.kept_groups import KeptGroups, abort
from services.trainer.plan_waves import Party
from services.trainer.rendezvous import Communicator, in_thread
from services.trainer.stage_weights import Staged
from shared.enrolment import Part
from shared.laps import Laps
from shared.logs import Log

LOOK_S = 0.05
"""Seconds from one look at the broadcast to the next, unless an engine answers."""
CONNECT_S = 5.0
"""Seconds for engines that were told to begin until all are in the group; milliseconds where all are alive."""
GRACE_S = 2.0
"""Seconds for engines to report after the group broke, and for a broadcast to end after it was aborted."""


class PartySender:
    """Sends to the engines of one run, to each party by itself."""

    def __init__(self, run: str, engines: Engines, groups: KeptGroups, log: Log) -> None:
        self._run, self._engines, self._groups, self._log = run, engines, groups, log
        self._buffers = asyncio.Lock()

    async def send(self, offer: Offer, party: Party, name: str, seconds: dict[str, float]) -> dict[str, Part]:
        """Give a version to the engines of a party.

        Args:
            name: of the group, where the party needs a new one.
            seconds: by phase; what this party takes is added.

        Returns:
            The parts of those engines that have come to an end, done or failed.

        Raises:
            RuntimeError: the engines did not all join the group.
        """
        # Engines whose turn at the two buffers has not come serve meanwhile: they are told to begin in it.
        async with self._buffers if offer.staged.buckets.is_on_host else contextlib.nullcontext():
            return await self._send(offer, party, name, Laps(seconds))

    async def _send(self, offer: Offer, party: Party, name: str, lap: Laps) -> dict[str, Part]:
        names, version = party.gathering.waiting.keys(), offer.staged.version
        group = await self._join(offer, party, name)
        lap("connect")
        cleared = await clear_engines(self._engines, version, offer.announcement, names, offer.until)
        lap("ready")
        sending = in_thread(lambda: _broadcast(group, offer.staged)) if cleared else None
        if sending is not None:
            sending.add_done_callback(asyncio.Future.exception)  # it may end after it was given up
        parts = await self._follow(sending, group, offer, names)
        if sending is not None and sending.done() and not sending.exception():
            lap.move("broadcast", sending.result())
        lap("prove")
        return parts

    async def _join(self, offer: Offer, party: Party, name: str) -> Communicator:
        version, gathering = offer.staged.version, party.gathering
        if offer.left_s <= 0:  # engines that begin too late are ended, as those that hang
            raise RuntimeError("the deadline passed before it was their turn")
        if party.group:
            await self._engines.start(version, gathering, party.group)
            return self._groups[party.group]
        await self._engines.start(version, gathering, name)
        wait_s = min(CONNECT_S, max(offer.left_s, 0.1))
        return await self._groups.connect(name, gathering.members, offer.staged.buckets.backend, wait_s)

    async def _follow(
        self, sending: "asyncio.Future[float] | None", group: Communicator, offer: Offer, names: Collection[str]
    ) -> dict[str, Part]:
        """Wait for the engines' answers; break the group up when one of them cannot go on, so that none is stuck.

        `sending`: None if nothing is sent, and the engines were told so.
        """
        broken = sending is None
        until = time.monotonic() + min(offer.left_s, GRACE_S if broken else offer.left_s)
        while True:
            parts = await self._engines.ended(offer.staged.version, offer.announcement, names, LOOK_S)
            if len(parts) == len(names) or time.monotonic() > until:
                break
            if not broken and _is_broken(parts, sending):
                broken, until = True, min(until, time.monotonic() + GRACE_S)
                abort(group)
        if sending is not None:
            await self._end(sending, group, offer, len(parts) < len(names) or _is_broken(parts, sending))
        return parts

    async def _end(self, sending: "asyncio.Future[float]", group: Communicator, offer: Offer, broken: bool) -> None:
        """End the broadcast; engines that have everything may say so before it returns here."""
        if not broken:
            await asyncio.wait([sending], timeout=GRACE_S)
        if not sending.done():
            abort(group)
            await asyncio.wait([sending], timeout=GRACE_S)
        if sending.done() and (error := sending.exception()):
            self._log.warning("broadcast_broken", run=self._run, version=offer.staged.version, error=str(error))


def _broadcast(group: Communicator, staged: Staged) -> float:
    """Blocks; the seconds that it took."""
    began = time.monotonic()
    group.broadcast(staged.buckets)
    return time.monotonic() - began


def _is_broken(parts: dict[str, Part], sending: "asyncio.Future[float] | None") -> bool:
    if any(part.state != "done" for part in parts.values()):
        return True
    return sending is not None and sending.done() and sending.exception() is not None
