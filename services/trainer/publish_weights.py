"""A step's parameters -> a weight version that every engine has taken and proven, while training goes on."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from services.trainer.announce_version import Proofs
from services.trainer.beside_training import BesideTraining
from services.trainer.broadcast_version import Broadcaster
from services.trainer.gather_engines import Engines
from services.trainer.publish_versions import MakeRoom
from services.trainer.rendezvous import in_thread
from services.trainer.round_outcome import Outcome
from services.trainer.stage_weights import Stage, Staged
from services.trainer.step_ledger import StepLedger
from services.trainer.takes import takes_of
from services.trainer.tell import tell
from services.trainer.weight_buckets import WeightBuckets
from services.trainer.weight_hashes import digest, engine_checksums
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.redis_connection import UNREACHABLE
from shared.runs import HEARTBEAT_S

MIB = 2**20
TRIES = 2
"""An engine that dies takes the broadcast with it; the others get the version in a second round, at once."""
SETTLE_S = 2 * HEARTBEAT_S
"""After Redis was away no engine looks alive until it has renewed its sign of life."""
JOINER_POLL_S = 0.25
JOINER_RETRY_S = (1.0, 30.0)
"""Shortest and longest pause between two tries to bring an engine up to date."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long publishing waits for engines, in seconds, and how many of them wait for it."""

    enrol_s: float = 30
    """For all engines that are up to answer an announcement."""
    update_s: float = 120
    """For all of them to prove the version after that, however many waves and tries it takes."""
    first_engine_s: float = 3600
    """For a first engine to come up at all, before version 0."""
    max_unavailable: int = 0
    """Engines that are paused for a version at the same time; 0 for all."""
    engines_per_group: int = 1
    """Engines that share a process group; 0 for all."""


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What became of one version."""

    version: int
    checksum: str
    nbytes: int
    done: tuple[str, ...]
    """Engines that have proven the version."""
    failed: dict[str, str]
    """Engine -> why it does not have it."""
    unverified: tuple[str, ...]
    """Those of `done` of which some or all tensors could not be verified."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By phase: hash, make_room, write, enrol, connect, broadcast, lend, prove, total; those of the last round."""


class Transport(Protocol):
    """How a version gets to the engines."""

    engines: Engines

    async def prepare(self, staged: Staged, proofs: Proofs) -> None:
        """What has to be there before engines are asked; none of their deadlines has begun."""
        ...

    async def round(self, staged: Staged, proofs: Proofs, until: float) -> Outcome:
        """Offer the version to every engine that is up, until each has ended its part or the deadline has passed.

        One round at a time. A round for a version that was offered before is for those that do not hold it yet. It
        ends with the first wave in which an engine fails. `until`: seconds since the epoch.
        """
        ...

    async def set_free(self) -> None:
        """Tell engines that take part in a round which an outage of Redis has ended that the version does not come."""
        ...

    def drop_group(self) -> None:
        """Let go of what is held between rounds."""
        ...


class WeightPublisher:
    """Publishes the versions of one run, one after the other."""

    def __init__(
        self,
        ledger: StepLedger,
        host: str,
        log: Log,
        bucket_mib: int = 512,
        staging: str = "auto",
        deadlines: Deadlines | None = None,
        await_redis: AwaitRedis | None = None,
        transport: Transport | None = None,
    ) -> None:
        """`host`: where engines reach this process, if they are to: without a `transport`; `staging`: see Stage."""
        self._redis, self._run, self._ledger = ledger.redis, ledger.run, ledger
        self._log, self._deadlines = log, deadlines or Deadlines()
        self._await_redis = await_redis or AwaitRedis(log, ledger.run)
        self._stage = Stage(bucket_mib * MIB, staging)
        waits = self._deadlines
        sizes = (waits.max_unavailable, waits.engines_per_group)
        self._transport = transport or Broadcaster(ledger, host, waits.enrol_s, sizes, log)
        self._lock, self._beside = asyncio.Lock(), BesideTraining()
        self._newest: tuple[Staged, Proofs] | None = None
        self._stands_back = False

    def stage(self, version: int, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Staged:
        """Copy the parameters (Hugging Face names and shapes); when it returns, training may change them.

        There are at most two copies: the newest, and the one that engines are being given. A snapshot that was
        not published yet is replaced.
        """
        return self._stage.stage(version, step, named_tensors)

    async def publish(self, staged: Staged, make_room: MakeRoom | None = None) -> PublishReport | None:
        """Announce a version, send it to all engines that are up, and wait for their proofs or the deadline.

        None if a newer snapshot has taken its place. Version 0 waits for a first engine. Later ones do not: whoever
        comes up gets the newest by `serve_joiners`. `make_room` is awaited once the trainer's device has done its part.

        Raises:
            FencedOut: another trainer took the run over.
            LedgerBehind: Redis lost the moment in which this one did.
        """
        started = time.monotonic()
        async with self._lock:
            if not self._stage.publish(staged):
                return None
            proofs = await in_thread(lambda: self._prove(staged.buckets))
            hashed_s = time.monotonic() - started
            self._newest = (staged, proofs)
            made_room_s = await self._make_room(make_room)
            self._stands_back = False
            if staged.version == 0:
                await self._first_engine()
            outcome = await self._send_through_outages(staged, proofs)
            seconds = {"hash": hashed_s, **made_room_s, **outcome.seconds, "total": time.monotonic() - started}
            report, takes = _report(staged, proofs, outcome, seconds), takes_of(outcome, time.time())
            await self._await_redis(lambda: self._ledger.note_takes(staged.version, takes, report.nbytes, seconds))
        self._log_report("weights_published", report)
        return report

    async def serve_joiners(self) -> None:
        """Bring engines that came up late, or failed, to the newest version; until cancelled."""
        pause_s = JOINER_RETRY_S[0]
        while True:
            await asyncio.sleep(JOINER_POLL_S)
            try:
                failed = await self._serve_joiners_once()
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._run, error=str(error))
                continue
            if failed:
                await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, JOINER_RETRY_S[1]) if failed else JOINER_RETRY_S[0]

    async def stand_back(self) -> None:
        """Give engines nothing until the next publication, what is under way excepted, which ends first."""
        async with self._lock:
            self._stands_back = True

    async def close(self) -> None:
        """Break up the group with the engines."""
        self._transport.drop_group()

    async def _serve_joiners_once(self) -> bool:
        """True if an engine could not be brought up to date."""
        if self._newest is None or self._stands_back or self._lock.locked():
            return False
        staged, proofs = self._newest
        await self._transport.set_free()
        if not await self._transport.engines.lacking(staged.version, proofs.checksum):
            return False
        async with self._lock:
            if self._stands_back:
                return False
            staged, proofs = self._newest
            outcome = await self._send(staged, proofs, tries=1)
            await self._ledger.note_takes(staged.version, takes_of(outcome, time.time()))
        if not outcome.done and not outcome.failed:
            await asyncio.sleep(JOINER_RETRY_S[0])  # it died, or takes part in an older announcement still
            return False
        self._log_report("joiners_served", _report(staged, proofs, outcome, outcome.seconds))
        return bool(outcome.failed)

    async def _send_through_outages(self, staged: Staged, proofs: Proofs) -> Outcome:
        """Send; where Redis went away meanwhile, send again once it and the engines' signs of life are back."""
        while True:
            try:
                return await self._send(staged, proofs, TRIES)
            except UNREACHABLE as error:
                self._log.warning("publication_interrupted", run=self._run, version=staged.version, error=str(error))
                await self._await_redis(self._transport.set_free)
                await asyncio.sleep(SETTLE_S)

    async def _send(self, staged: Staged, proofs: Proofs, tries: int) -> Outcome:
        """Round after round until every engine has the version, was tried `tries` times, or the deadline passed."""
        await self._transport.set_free()
        await self._transport.prepare(staged, proofs)
        until = time.time() + self._deadlines.enrol_s + self._deadlines.update_s
        setbacks, failures, engines = list[tuple[str, str]](), Counter[str](), self._transport.engines
        engines.given_up.clear()
        while True:
            outcome = await self._transport.round(staged, proofs, until)
            setbacks += outcome.failed.items()
            failures.update(outcome.failed.keys())
            engines.given_up |= {name for name, count in failures.items() if count >= tries}
            if time.time() >= until or not (outcome.waiting or outcome.failed.keys() - engines.given_up):
                break
        setbacks += ((name, "the deadline passed before it was the engine's turn") for name in outcome.waiting)
        outcome.setbacks = setbacks
        outcome.failed = {name: reason for name, reason in setbacks if name not in outcome.done}
        for name, reason in outcome.failed.items():
            detail = {"version": staged.version, "engine": name, "reason": reason}
            await tell(self._redis, self._run, self._log, "weights_failed", detail)
        return outcome

    async def _make_room(self, make_room: MakeRoom | None) -> dict[str, float]:
        """Returns the seconds that it took, as a phase."""
        if make_room is None:
            return {}
        started = time.monotonic()
        await make_room()
        return {"make_room": time.monotonic() - started}

    async def _first_engine(self) -> None:
        until = time.monotonic() + self._deadlines.first_engine_s
        while not await self._await_redis(self._transport.engines.up):
            if time.monotonic() > until:
                self._log.warning("no_engine", run=self._run, waited_s=self._deadlines.first_engine_s)
                return
            await asyncio.sleep(JOINER_POLL_S)

    def _prove(self, buckets: WeightBuckets) -> Proofs:
        buckets.wait_copied()
        with self._beside.on(buckets.device):
            hashes = engine_checksums(buckets.tensors, buckets.device.type, buckets.device)
        return Proofs(digest(hashes), hashes, buckets.device.type)

    def _log_report(self, event: str, report: PublishReport) -> None:
        counts = {"done": len(report.done), "failed": len(report.failed), "unverified": len(report.unverified)}
        phases = {f"{phase}_s": value for phase, value in report.seconds.items()}
        self._log.info(event, run=self._run, version=report.version, **counts, **phases)


def _report(staged: Staged, proofs: Proofs, outcome: Outcome, seconds: dict[str, float]) -> PublishReport:
    unverified = tuple(name for name, part in outcome.done.items() if part.unverified)
    size = staged.buckets.nbytes
    done = tuple(outcome.done)
    return PublishReport(staged.version, proofs.checksum, size, done, outcome.failed, unverified, seconds)
