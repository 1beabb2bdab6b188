"""One service -> kept running: started, found healthy, restarted with back-off, given up with its reason."""

import asyncio
import collections
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.probe import is_healthy
from deploy.process import Child, start
from deploy.services import Service
from shared.errors import SluiceError

Phase = Literal["waiting", "starting", "healthy", "restarting", "failed", "stopping", "stopped"]

FIRST_TRIES = 2
"""Deaths before it was ever healthy after which a service is given up: it cannot start here."""
MAX_DEATHS = 5
DEATH_WINDOW_S = 120.0
"""A service that dies MAX_DEATHS times within this time is given up."""
BACK_OFF_S, MAX_BACK_OFF_S = 0.5, 30.0
POLL_S = 0.2
LAST_LINES = 8
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Condition:
    """How one service is."""

    name: str
    phase: Phase
    pid: int | None
    restarts: int
    since: float
    reason: str


class Keeper:
    """Keeps one service running. `changed` is called with every change of its condition."""

    def __init__(
        self, service: Service, environment: Mapping[str, str], log: Path, changed: Callable[[Condition], None]
    ) -> None:
        self.service, self._log, self._changed = service, log, changed
        self._environment = {**environment, **service.environment}
        self._child: Child | None = None
        self._deaths: collections.deque[float] = collections.deque(maxlen=MAX_DEATHS)
        self._restarts = 0
        self.healthy = asyncio.Event()
        self.condition = Condition(service.name, "waiting", None, 0, time.time(), "")

    async def run(self) -> None:
        """Keep the service running until it is given up (SluiceError with the reason) or this is cancelled."""
        while True:
            born = time.monotonic()
            self._child = await self._start()
            self._mark("starting", self.condition.reason)
            reason = await self._live(self._child)
            self._child.kill_rest()
            self._count_death(reason)
            self._restarts += 1
            self._mark("restarting", reason)
            await asyncio.sleep(self._back_off(time.monotonic() - born))

    async def stop(self) -> None:
        """End the service: SIGTERM, its grace, SIGKILL. A service that was given up stays marked so."""
        if self._child is None:
            return
        final: Phase = "failed" if self.condition.phase == "failed" else "stopped"
        if final == "stopped":
            self._mark("stopping")
        await self._child.stop(self.service.stop_grace_s)
        self._child = None
        self._mark(final, self.condition.reason)

    async def _start(self) -> Child:
        try:
            return await start(self.service.command, self._environment, self._log)
        except SluiceError as error:
            self._mark("failed", str(error))
            raise

    async def _live(self, child: Child) -> str:
        """One life of the process, until it dies; the reason."""
        end = asyncio.create_task(child.wait())
        watch = asyncio.create_task(self._until_healthy())
        try:
            await asyncio.wait({end, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
                self._mark("healthy")
                self.healthy.set()
            return self._describe(await end)
        except TimeoutError:
            self._give_up(f"gave no healthy answer at {_shown(self.service.health)} within its deadline")
        finally:
            for task in (end, watch):
                task.cancel()
        raise AssertionError("unreachable: giving up raises")

    async def _until_healthy(self) -> None:
        async with asyncio.timeout(self.service.start_deadline_s):
            while not await is_healthy(self.service.health):
                await asyncio.sleep(POLL_S)

    def _count_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        if not self.healthy.is_set() and len(self._deaths) >= FIRST_TRIES:
            self._give_up(f"cannot start: it {reason}")
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] < DEATH_WINDOW_S:
            self._give_up(f"died {MAX_DEATHS} times within {DEATH_WINDOW_S:g} seconds: it {reason}")

    def _give_up(self, reason: str) -> None:
        self._mark("failed", reason)
        lines = "".join(f"\n  {line}" for line in last_lines(self._log, LAST_LINES))
        raise SluiceError(f"{self.service.name} {reason}; its log {self._log} ends with:{lines}")

    def _back_off(self, lived_s: float) -> float:
        recent = 1 if lived_s > DEATH_WINDOW_S else len(self._deaths)
        return min(BACK_OFF_S * 2 ** (recent - 1), MAX_BACK_OFF_S)

    def _describe(self, code: int) -> str:
        return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"

    def _mark(self, phase: Phase, reason: str = "") -> None:
        pid = self._child.pid if self._child is not None and self._child.running else None
        self.condition = Condition(self.service.name, phase, pid, self._restarts, time.time(), reason)
        self._changed(self.condition)


def last_lines(file: Path, count: int) -> list[str]:
    """The last lines of a file; none if it is not there."""
    with contextlib.suppress(OSError), file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
        return log.read().decode("utf-8", "replace").splitlines()[-count:]
    return []


def _shown(address: str) -> str:
    return address if "@" not in address else address.rpartition("@")[2]
