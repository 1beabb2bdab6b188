"""Announced weight versions -> an engine that holds the newest one, and the trainer knows it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from services.rollout.engine_calls import EngineError, EngineSilent
from services.rollout.engine_update import EngineUpdate
from services.rollout.launch_engine import EngineDied
from shared.enrolment import Part, read_part, write_answer
from shared.logs import Log
from shared.messages import WeightVersion
from shared.redis_connection import UNREACHABLE
from shared.streams import Stream
from shared.topology import WEIGHTS, Keys

BLOCK_S = 0.5
GO_POLL_S = 0.005
RETRY_S = 0.5
MAX_FAILURES = 3
"""Failed updates in a row after which a new process is better than another try."""


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
    unverified: int


class WeightPuller:
    """Follows the announcements of one run for one life of an engine."""

    def __init__(self, redis: Redis, run: str, engine: EngineIdentity, update: EngineUpdate, log: Log) -> None:
        self._redis, self._keys, self._run = redis, Keys(run), run
        self._weights: Stream[WeightVersion] = Stream(redis, run, WEIGHTS)
        self._engine, self._update, self._log = engine, update, log
        self._proof: Proof | None = None
        self._failures = 0

    async def follow(self, proven: Callable[[], None], failed: Callable[[], Awaitable[object]]) -> None:
        """Pull every newest version until cancelled.

        Args:
            proven: called when the engine holds the newest version and may serve.
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
        await self._enrol(announced)
        while True:
            if self._holds(announced):
                proven()
            elif (go := await self._read_go(announced)) is not None:
                await self._pull(announced, go, failed)
                continue
            waiting = not self._holds(announced) and time.time() < announced.rendezvous.enrol_until
            newer = await self._newer(entry_id, 0 if waiting else BLOCK_S)
            if newer is not None:
                return newer
            if waiting:
                await asyncio.sleep(GO_POLL_S)

    async def _enrol(self, announced: WeightVersion) -> None:
        """Ask for a part in the rendezvous, or say at once that the engine has this version."""
        part = self._part(announced)
        if self._holds(announced) and self._proof is not None:
            part = replace(part, state="done", checksum=announced.checksum, unverified=self._proof.unverified)
        await self._write(announced, part)

    async def _read_go(self, announced: WeightVersion) -> Part | None:
        part = await read_part(self._redis, self._keys, announced.version, self._engine.name)
        answer = (announced.rendezvous.group_name, self._engine.incarnation)
        return part if part and part.state == "go" and (part.announcement, part.incarnation) == answer else None

    async def _pull(self, announced: WeightVersion, go: Part, failed: Callable[[], Awaitable[object]]) -> None:
        started = time.monotonic()
        try:
            unverified = await self._update.run(announced, go)
        except EngineError as error:
            self._proof = None
            self._failures += 1
            await failed()
            await self._report_failure(announced, error)
            return
        self._failures = 0
        self._proof = Proof(announced.version, announced.checksum, unverified)
        seconds = {**self._update.seconds, "total": time.monotonic() - started}
        phases = {f"{phase}_s": value for phase, value in seconds.items()}
        self._log.info("weights_pulled", run=self._run, version=announced.version, unverified=unverified, **phases)
        done = replace(self._part(announced), state="done", checksum=announced.checksum, unverified=unverified)
        await self._write(announced, replace(done, seconds=seconds))

    async def _report_failure(self, announced: WeightVersion, error: EngineError) -> None:
        self._log.error("pull_failed", run=self._run, version=announced.version, reason=str(error))
        try:
            await self._write(announced, replace(self._part(announced), state="failed", reason=str(error)))
        finally:
            if isinstance(error, EngineSilent) or self._failures >= MAX_FAILURES:
                raise EngineDied(f"weight version {announced.version} could not be loaded: {error}") from error

    def _holds(self, announced: WeightVersion) -> bool:
        proof = self._proof
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
