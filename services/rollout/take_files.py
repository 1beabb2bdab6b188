"""One announced version in files -> a folder on the engine's host, checked while the engine generates, then loaded."""

import asyncio
import threading
import time
from pathlib import Path
from typing import ClassVar

from services.rollout.copy_lock import HeldLock
from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_events import EngineEvents
from services.rollout.host_copy import HostCopy
from services.rollout.mapped_model import find_damage, map_tensors
from services.rollout.refused_files import DamagedVersion, FilesLate, FilesRefused
from services.rollout.version_chain import VersionChain
from shared.enrolment import Part
from shared.messages import WeightFiles, WeightVersion
from shared.weight_store import WeightStore


class TakeFiles:
    """See Incoming."""

    together: ClassVar[bool] = False
    keeps_buffers: ClassVar[bool] = False

    def __init__(self, calls: EngineCalls, copy: HostCopy, in_place: bool, events: EngineEvents) -> None:
        """`in_place`: all versions are full, and the engine reads those on a path where they are."""
        self._calls, self._copy, self._in_place, self._events = calls, copy, in_place, events
        self._taking: _Taking | None = None

    @property
    def path(self) -> Path:
        """Where the version is that was prepared."""
        assert self._taking is not None, "prepared first"
        return self._taking.path

    async def prepare(self, announced: WeightVersion, part: Part) -> None:
        """Have the version on a path of this host, every tensor of it checked; each refusal is told by its name."""
        assert announced.files is not None, "this is for versions in files"
        files, until = announced.files, announced.rendezvous.done_until
        taking = self._taking = _Taking(until)
        try:
            async with asyncio.timeout(until - time.time()):
                await asyncio.to_thread(self._take, files, taking)
        except TimeoutError:
            raise taking.noted(FilesLate("the files were not on this host in time")) from None
        except FilesRefused as refusal:
            raise taking.noted(refusal) from None
        finally:
            for refusal in taking.refusals:
                said = {"version": announced.version, "refusal": refusal.name, "reason": str(refusal)}
                await self._events.tell("weights_refused", **said)

    async def begin(self) -> None:
        """Nothing: loading a folder is one call."""

    async def load(self, announced: WeightVersion, part: Part) -> None:
        """Load the folder."""
        left_s = announced.rendezvous.done_until - time.time()
        await self._calls.load_folder(str(self.path), announced.version, left_s)

    async def give_up(self, announced: WeightVersion) -> None:
        """Nothing is open."""

    def release(self) -> None:
        """Let the host's copy be changed again."""
        if self._taking is not None:
            self._taking.leave()

    def _take(self, files: WeightFiles, taking: "_Taking") -> None:
        store = WeightStore(files.store)
        chain = VersionChain(store, files, taking.check)
        if not (self._in_place and store.is_local):
            return taking.keep(*self._copy.take(chain, taking.check, taking.noted))
        path, manifest = store.path(files.folder), chain.target.manifest
        try:  # reads what the engine will read in a moment, so that its pause is shorter
            damage = find_damage(map_tensors(path, manifest.shards), manifest.tensors, taking.check)
        except (OSError, ValueError) as error:
            raise DamagedVersion(f"in {path}, {error}") from error
        if damage:
            raise DamagedVersion(f"in {path}, {damage}")
        return taking.keep(path)


class _Taking:
    """One version on its way to this host, in a thread that may be left behind."""

    def __init__(self, until: float) -> None:
        """`until`: in seconds since the epoch."""
        self.path = Path()
        self.refusals: list[FilesRefused] = []
        self._until, self._guard = until, threading.Lock()
        self._held: HeldLock | None = None
        self._is_left = False

    def check(self) -> None:
        """FilesLate once nobody waits for it any more."""
        if self._is_left or time.time() > self._until:
            raise FilesLate("the files were not on this host in time")

    def noted(self, refusal: FilesRefused) -> FilesRefused:
        self.refusals.append(refusal)
        return refusal

    def keep(self, path: Path, held: HeldLock | None = None) -> None:
        """It is there, and stays as it is until this is left."""
        with self._guard:
            if self._is_left and held is not None:
                held.release()
            self.path, self._held = path, held

    def leave(self) -> None:
        """Stop the thread, or let go of what it holds."""
        with self._guard:
            self._is_left = True
            if self._held is not None:
                self._held.release()
