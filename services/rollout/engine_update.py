"""One announced weight version -> the weights of one engine, while its requests wait; proven before they go on."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from services.rollout.engine_calls import EngineCalls, EngineError, EngineRefused, EngineSilent
from services.rollout.refused_files import FilesRefused
from services.rollout.take_broadcast import TakeBroadcast, most_bytes
from services.rollout.take_lent import TakeLent
from services.rollout.update_progress import NotCleared, UpdateProgress
from shared.enrolment import Part, State
from shared.laps import Laps
from shared.messages import WeightVersion

FLUSH_TRIES = 6
"""For requests that were told to end; retracted ones do not go away by themselves."""
FLUSH_POLL_S = 0.01
CHECK_S = 30.0
"""Seconds to hash what an engine holds after an update that failed."""
PROOF_S, BYTES_S = 45.0, 1e9
"""An engine whose proof takes longer has stalled: seconds, and bytes a second on top.

Over NCCL SGLang answers before the bytes are there: if the trainer died meanwhile, they never will be.
"""
DRAIN_SHARE = 0.5
"""Part of the time left for an update that requests in flight have to finish; then they are retracted."""


class UpdateFailed(EngineError):
    """The engine took the weights, but does not hold what the trainer sent."""


class Incoming(Protocol):
    """How the bytes of a version come into an engine. Every call keeps to the deadline of the announcement."""

    together: ClassVar[bool]
    """All engines of a wave take the bytes at the same moment, so that each has to be ready for it."""
    keeps_buffers: ClassVar[bool]
    """The engine needs memory of its own to receive a bucket: freed and taken again, that costs 2 ms a GB."""

    async def prepare(self, announced: WeightVersion, part: Part) -> None:
        """What can be done while the engine generates; its weights stay as they are."""
        ...

    async def begin(self) -> None:
        """The engine is paused; its weights stay as they are if this is refused."""
        ...

    async def load(self, announced: WeightVersion, part: Part) -> None:
        """Put the version into the engine, and name it."""
        ...

    async def give_up(self, announced: WeightVersion) -> None:
        """Clear up after one of the two was refused, so that nobody waits for this engine."""
        ...

    def release(self) -> None:
        """Let go of what was held for this version; called at the end of every update."""
        ...


@dataclass
class EngineUpdate:
    """The state of an engine's weights while it is updated again and again."""

    calls: EngineCalls
    mode: str
    """What happens to requests in flight: retract, abort, in_place or drain."""
    device: str
    shares_prefixes: bool = True
    """Whether a request may use what another one has cached; never where updates are in place."""
    files: Incoming | None = None
    """For versions that come as files; None in a run whose versions are broadcast."""
    unfinished: bool = False
    """True while calls are under way, and after one that got no answer; an engine left then is of no more use."""
    mixed: bool = False
    """True while the engine may hold parts of two versions. It is paused, and must stay so.

    At first for an engine that was there before: a sidecar may have left it in the middle of an update.
    """
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """How long the phases of the last update took."""
    held: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """The engine's own hashes of the version that it proved last, by rank."""
    gave_memory: bool = False
    """True while the engine has no device memory, and so no weights; it is paused."""
    _at_work: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, announced: WeightVersion, part: Part, progress: UpdateProgress) -> int:
        """Load and prove a version; `progress` hears of each phase.

        Returns:
            How many tensors could not be verified; -1 for all of them.

        Raises:
            EngineError: the engine does not hold the version. It generates again only if it holds another one whole.
        """
        async with self._at_work:
            return await self._run(announced, part, progress)

    async def give_memory(self, until: float) -> None:
        """Give the engine's device memory away until the next version comes: `run` takes it again.

        Requests in flight wait, or end as the mode says; none is lost. The weights are.

        Args:
            until: seconds since the epoch.

        Raises:
            EngineError: the engine may have its memory still, and is of no more use.
        """
        async with self._at_work:
            if self.gave_memory:
                return
            self.unfinished = self.mixed = True
            self.seconds, self.held = {}, []
            lap = Laps(self.seconds)
            await self._pause(until, lap)
            await self._flush()
            lap("flush")
            await self.calls.release_memory(until - time.time())
            lap("release")
            self.gave_memory, self.unfinished = True, False

    async def _run(self, announced: WeightVersion, part: Part, progress: UpdateProgress) -> int:
        self.unfinished, self.seconds = True, {}
        incoming = self._incoming(announced)
        try:
            unverified = await self._load(incoming, announced, part, progress)
        except (EngineRefused, FilesRefused, NotCleared):
            await self._clean_up(incoming, announced)
            self.unfinished = False
            raise
        finally:
            incoming.release()
        self.unfinished = False
        return unverified

    def _incoming(self, announced: WeightVersion) -> Incoming:
        if announced.files is None:
            return TakeLent(self.calls) if announced.rendezvous.backend == "ipc" else TakeBroadcast(self.calls)
        assert self.files is not None, "the run's settings say that versions come as files, to both sides"
        return self.files

    async def _load(self, incoming: Incoming, announced: WeightVersion, part: Part, progress: UpdateProgress) -> int:
        until, lap = announced.rendezvous.done_until, Laps(self.seconds)
        progress.enter("preparing")
        await incoming.prepare(announced, part)
        lap("prepare" if announced.files else "connect")
        if self.gave_memory:
            await self._take_memory(until, lap, progress)
        else:
            await self._pause(until, lap, progress)
        await incoming.begin()
        if incoming.together:
            progress.enter("ready")
            await progress.cleared(until)
            lap("ready")
        progress.enter("loading")
        self.mixed = True
        await incoming.load(announced, part)
        lap("load")
        progress.enter("proving")
        if self.mode == "in_place":
            return await self._prove_resumed(incoming, announced, lap)
        if self.shares_prefixes:
            await self._flush()
        lap("flush")
        unverified = await self._prove(announced, lap)
        await self.calls.resume(incoming.keeps_buffers)
        lap("resume")
        return unverified

    async def _prove(self, announced: WeightVersion, lap: Laps) -> int:
        expected = announced.tensor_checksums if announced.engine_device == self.device else {}
        found = await self.calls.checksums(min(announced.rendezvous.done_until - time.time(), _proof_s(announced)))
        unverified = prove(expected, found)
        lap("prove")
        self.mixed, self.held = False, found
        return unverified

    async def _prove_resumed(self, incoming: Incoming, announced: WeightVersion, lap: Laps) -> int:
        """Two short pauses in place of a long one, for requests whose tokens mix versions anyway."""
        await self.calls.resume(incoming.keeps_buffers)
        lap("resume")
        try:
            return await self._prove(announced, lap)
        except EngineError as failure:
            try:
                await self.calls.pause(self.mode, announced.rendezvous.done_until - time.time())
            except EngineRefused as error:
                raise EngineSilent(f"{failure}, and it goes on: {error}") from error
            raise

    async def _take_memory(self, until: float, lap: Laps, progress: UpdateProgress) -> None:
        progress.enter("resuming")
        await self.calls.resume_memory(until - time.time())
        self.gave_memory = False
        lap("resume_memory")

    async def _pause(self, until: float, lap: Laps, progress: UpdateProgress | None = None) -> None:
        enter = progress.enter if progress is not None else _tell_nobody
        if self.mode == "drain":
            enter("draining")
            await self.calls.wait_until_idle((until - time.time()) * DRAIN_SHARE)
            lap("drain")
        enter("pausing")
        await self.calls.pause("in_place" if self.mode == "in_place" else "retract", until - time.time())
        if self.mode == "abort":
            await self.calls.abort_all()  # SGLang's own pause of this kind looks once a second whether all have ended
        lap("pause")

    async def _flush(self) -> None:
        """Forget what the old weights cached: a later request could hit it, and its log-probabilities would be off."""
        if await self._is_flushed(FLUSH_TRIES if self.mode == "abort" else 1):
            return
        # SGLang before 0.5.20 never flushes while retracted requests wait. Ended, they answer with what they have.
        await self.calls.abort_all()
        if not await self._is_flushed(FLUSH_TRIES):
            await self.calls.flush_cache()

    async def _is_flushed(self, tries: int) -> bool:
        for _ in range(tries):
            with contextlib.suppress(EngineRefused):
                await self.calls.flush_cache()
                return True
            await asyncio.sleep(FLUSH_POLL_S)
        return False

    async def _clean_up(self, incoming: Incoming, announced: WeightVersion) -> None:
        """Make another try possible, and generate meanwhile if the engine still holds one version as a whole.

        A broadcast that broke has mostly changed nothing yet: the engine's hashes tell.
        """
        await incoming.give_up(announced)
        with contextlib.suppress(EngineRefused):
            if self.mixed and self.held and await self.calls.checksums(CHECK_S) == self.held:
                self.mixed = False
            if not self.mixed:
                await self.calls.resume(incoming.keeps_buffers)


def _proof_s(announced: WeightVersion) -> float:
    return PROOF_S + sum(map(most_bytes, announced.buckets)) / BYTES_S


def _tell_nobody(state: State) -> None:
    """No version is under way whose part could say so."""
    del state


def prove(expected: dict[str, str], ranks: list[dict[str, str]]) -> int:
    """Compare an engine's hashes with the trainer's; returns how many could not be compared, -1 for all.

    Raises:
        UpdateFailed: a tensor differs.
    """
    if not expected or len(ranks) != 1:
        return -1
    (found,) = ranks
    wrong = sorted(name for name, value in found.items() if expected.get(name, value) != value)
    if wrong:
        raise UpdateFailed(f"{len(wrong)} of {len(found)} tensors differ from the trainer's, such as {wrong[0]}")
    return sum(name not in expected for name in found)
