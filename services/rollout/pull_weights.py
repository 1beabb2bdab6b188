"""Announced weight versions -> an engine that holds the newest one, and the trainer knows it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from services.rollout.adapter_update import AdapterUpdate
from services.rollout.engine_calls import EngineError, EngineSilent
from services.rollout.engine_update import EngineUpdate
from services.rollout.launch_engine import EngineDied
from services.rollout.refused_files import FilesRefused
from services.rollout.update_progress import NotCleared, UpdateProgress
from shared.enrolment import Part, read_part, write_answer
from shared.logs import Log
from shared.messages import WeightVersion
from shared.redis_connection import UNREACHABLE
from shared.runs import withdraw
from shared.streams import Stream
from shared.topology import WEIGHTS, Keys

BLOCK_S = 0.5
GO_POLL_S = 0.005
RETRY_S = 0.5
MAX_FAILURES = 3
"""Failed updates in a row after which a new process is better than another try."""
LEFT_ALONE_S = 10.0
"""After a failed update: an engine that still holds its old version serves it again if nobody offers the new one."""


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Who enrols: the sidecar's name, one life of its engine, and how many ranks that takes in a group."""

    name: str
    incarnation: str
    ranks: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A version that the engine was seen to hold."""

    version: int
    checksum: str
    part: Part
    """What was written when it had been proven."""


class WeightPuller:
    """Follows the announcements of one run for one life of an engine."""

    def __init__(
        self, redis: Redis, run: str, engine: EngineIdentity, update: EngineUpdate | AdapterUpdate, log: Log
    ) -> None:
        self._redis, self._keys, self._run = redis, Keys(run), run
        self._weights: Stream[WeightVersion] = Stream(redis, run, WEIGHTS)
        self._engine, self._update, self._log = engine, update, log
        self._proof: Proof | None = None
        self._failures, self._failed_at = 0, 0.0

    async def follow(self, proven: Callable[[], None], failed: Callable[[], Awaitable[object]]) -> None:
        """Pull every newest version until cancelled.

        Args:
            proven: called when the engine holds the newest version, or one that the trainer leaves it with, and may
                serve.
            failed: awaited when an update failed; the engine must not serve.

        Raises:
            EngineDied: the engine hangs, or cannot be updated any more.
        """
        newest: tuple[str, WeightVersion] | None = None
        while True:
            try:
                newest = newest or await self._weights.newest() or await self._newer("0", BLOCK_S)
                newest = await self._take_part(*newest, proven, failed) if newest else None
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._run, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _take_part(
        self,
        entry_id: str,
        announced: WeightVersion,
        proven: Callable[[], None],
        failed: Callable[[], Awaitable[object]],
    ) -> tuple[str, WeightVersion]:
        """Play the engine's part in one announcement until there is a newer one; returns that."""
        while not await self._answers():
            if (newer := await self._newer(entry_id, RETRY_S)) is not None:
                return newer
        await self._enrol(announced)
        while True:
            if not self._holds(announced) and (go := await self._read_go(announced)) is not None:
                await self._pull(announced, go, failed)
                continue
            if self._holds(announced) or self._is_left_alone():
                proven()
            waiting = not self._holds(announced) and time.time() < announced.rendezvous.enrol_until
            newer = await self._newer(entry_id, 0 if waiting else BLOCK_S)
            if newer is not None:
                return newer
            if waiting:
                await asyncio.sleep(GO_POLL_S)

    async def _answers(self) -> bool:
        """A silent engine has no part in a version: others would be paused for it. Its sign of life is taken back."""
        if await self._update.calls.healthy():
            return True
        await withdraw(self._redis, self._run, f"engine-up/{self._engine.name}")
        return False

    def _is_left_alone(self) -> bool:
        return self._proof is not None and 0 < self._failed_at < time.monotonic() - LEFT_ALONE_S

    async def _enrol(self, announced: WeightVersion) -> None:
        """Ask for a part in the rendezvous, or say at once that the engine has this version."""
        part = self._part(announced)
        if self._holds(announced) and self._proof is not None:  # it says when and how it took the version, again
            part = replace(self._proof.part, announcement=part.announcement, group=part.group)
        await self._write(announced, part)

    async def _read_go(self, announced: WeightVersion) -> Part | None:
        part = await read_part(self._redis, self._keys, announced.version, self._engine.name)
        answer = (announced.rendezvous.group_name, self._engine.incarnation)
        return part if part and part.state == "go" and (part.announcement, part.incarnation) == answer else None

    async def _pull(self, announced: WeightVersion, go: Part, failed: Callable[[], Awaitable[object]]) -> None:
        started = time.monotonic()
        progress = UpdateProgress(self._redis, self._keys, announced.version, self._engine.name, go, self._log)
        try:
            async with progress.told():
                unverified = await self._update.run(announced, go, progress)
        except EngineError as error:
            if self._update.mixed or self._update.unfinished:
                self._proof = None
            self._failed_at = time.monotonic()
            self._failures += not isinstance(error, NotCleared | FilesRefused)  # those are no fault of this engine
            await failed()
            await self._report_failure(announced, error, self._seconds(started))
            return
        self._failures, self._failed_at, seconds = 0, 0.0, self._seconds(started)
        done = replace(self._part(announced), state="done", checksum=announced.checksum, seconds=seconds)
        done = replace(done, unverified=unverified, since=time.time())
        self._proof = Proof(announced.version, announced.checksum, done)
        phases = {f"{phase}_s": value for phase, value in seconds.items()}
        self._log.info("weights_pulled", run=self._run, version=announced.version, unverified=unverified, **phases)
        await self._write(announced, done)

    def _seconds(self, started: float) -> dict[str, float]:
        return {**self._update.seconds, "total": time.monotonic() - started}

    async def _report_failure(self, announced: WeightVersion, error: EngineError, seconds: dict[str, float]) -> None:
        self._log.error("pull_failed", run=self._run, version=announced.version, reason=str(error))
        refused = isinstance(error, FilesRefused) and error.of_store
        part = replace(self._part(announced), files_refused=refused, seconds=seconds)
        failed = replace(part, state="failed", reason=str(error))
        try:
            await self._write(announced, failed)
        finally:
            if isinstance(error, EngineSilent) or self._failures >= MAX_FAILURES:
                raise EngineDied(f"weight version {announced.version} could not be loaded: {error}") from error

    def _holds(self, announced: WeightVersion) -> bool:
        proof = None if self._update.gave_memory else self._proof
        return proof is not None and (proof.version, proof.checksum) == (announced.version, announced.checksum)

    def _part(self, announced: WeightVersion) -> Part:
        engine, group = self._engine, self._update.calls.group
        return Part("enrolled", announced.rendezvous.group_name, engine.incarnation, engine.ranks, group)

    async def _write(self, announced: WeightVersion, part: Part) -> None:
        await write_answer(self._redis, self._keys, announced.version, self._engine.name, part)

    async def _newer(self, after: str, block_s: float) -> tuple[str, WeightVersion] | None:
        """The newest announcement after an entry, waiting for one up to `block_s` seconds."""
        entries = await self._weights.read(after, block_s=block_s)
        return entries[-1] if entries else None
