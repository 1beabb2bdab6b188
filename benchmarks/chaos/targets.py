"""A blow -> a signal to the right process, once the service is back from the one before."""

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import httpx

from benchmarks.chaos.power_cut import AppendOnlyFile
from deploy.process import birth, descendants
from deploy.supervisor_state import SupervisorState, read_state

POLL_S = 0.1
BACK_S = 180.0
"""Seconds in which a service has to be healthy again; an engine imports for long on a busy machine."""
SERVICES = {"sidecar": "engine-0", "engine": "engine-0"}


class NotBack(Exception):
    """A service that was killed did not come back."""


class Targets:
    """The processes of one supervisor."""

    def __init__(self, home: Path, engine_url: str, seed: int) -> None:
        self._home, self._engine_url = home, engine_url
        self._draw = random.Random(seed)
        self._file = AppendOnlyFile(home / "redis")
        self._hit: set[tuple[int, str]] = set()
        self._thaws: set[asyncio.Task[None]] = set()

    async def back(self, target: str) -> int:
        """Wait until the service is healthy in a process that was not killed; its process id."""
        began = time.monotonic()
        while (pid := await self._healthy(target)) is None:
            self._check_failed()
            if time.monotonic() - began > BACK_S:
                raise NotBack(f"{target} was not healthy again within {BACK_S:g} s; see {self._home}/logs")
            await asyncio.sleep(POLL_S)
        return pid

    def kill(self, pid: int) -> None:
        """SIGKILL: the process learns nothing of it."""
        self._hit.add((pid, birth(pid)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def cut(self, pid: int, lost_s: float) -> int:
        """Kill Redis and take back its last seconds; the bytes that it lost."""
        self._hit.add((pid, birth(pid)))
        return self._file.cut(pid, lost_s)

    async def watch_file(self) -> None:
        """Watch the append-only file, until cancelled."""
        await self._file.watch()

    def freeze(self, pid: int, seconds: float) -> None:
        """Stop a process, and let it go on later as if nothing had been."""
        born = birth(pid)
        self._hit.add((pid, born))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        thaw = asyncio.create_task(self._thaw(pid, born, seconds))
        self._thaws.add(thaw)
        thaw.add_done_callback(self._thaws.discard)

    async def all_thawed(self) -> None:
        """Wait until nothing is frozen."""
        await asyncio.gather(*self._thaws)

    async def _thaw(self, pid: int, born: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            self._hit.discard((pid, born))
            if birth(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def _healthy(self, target: str) -> int | None:
        service = self._state().services[SERVICES.get(target, target)]
        pid = service["pid"]
        if service["phase"] != "healthy" or not self._untouched(pid):
            return None
        return await self._engine(pid) if target == "engine" else pid

    async def _engine(self, sidecar: int) -> int | None:
        """One of the engine's processes, any of them, once the engine answers."""
        family = [pid for pid in sorted(descendants(sidecar)) if self._untouched(pid)]
        if not family:
            return None
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                answer = await client.get(f"{self._engine_url}/health")
        except httpx.HTTPError:
            return None
        return self._draw.choice(family) if answer.is_success else None

    def _untouched(self, pid: int | None) -> bool:
        return pid is not None and birth(pid) != "" and (pid, birth(pid)) not in self._hit

    def _check_failed(self) -> None:
        failed = {name: s["reason"] for name, s in self._state().services.items() if s["phase"] == "failed"}
        if failed:
            raise NotBack(f"the supervisor gave up: {failed}")

    def _state(self) -> SupervisorState:
        state = read_state(self._home)
        assert state is not None, "the supervisor has written its state since it was healthy"
        return state
