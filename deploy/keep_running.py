"""One service -> kept running: started, found healthy, restarted with back-off when it dies or hangs."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.process import Child, start
from deploy.services import Service
from deploy.watch_health import until_healthy, until_hung
from shared.errors import SluiceError
from shared.tasks import end

Phase = Literal["waiting", "starting", "healthy", "restarting", "failed", "stopping", "stopped"]

FIRST_TRIES = 2
"""Starts without a healthy answer after which a service that never was healthy is given up: it cannot start here."""
MAX_FAILED_STARTS = 5
"""Starts in a row without a healthy answer after which a service that was healthy before counts as failed."""
RETRY_S = 60.0
"""Pause between two starts of a failed service, whose cause, such as a full disk, may go away by itself."""
BACK_OFF_S, MAX_BACK_OFF_S = 0.5, 30.0
STEADY_S = 10.0
"""A service that stayed healthy for so long begins with the shortest back-off again."""
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


@dataclass(frozen=True, slots=True)
class Life:
    """How one life of the process went."""

    reason: str
    """Why it is over."""
    healthy_s: float | None
    """Seconds from the first healthy answer to the end; None if there was no such answer."""


class Keeper:
    """Keeps one service running. `changed` is called with every change of its condition."""

    def __init__(
        self, service: Service, environment: Mapping[str, str], log: Path, changed: Callable[[Condition], None]
    ) -> None:
        self.service, self._log, self._changed = service, log, changed
        self._environment = {**environment, **service.environment}
        self._child: Child | None = None
        self._log_start = 0
        self._restarts = 0
        self._failed_starts = 0
        self._next_pause_s = BACK_OFF_S
        self.healthy = asyncio.Event()
        self.condition = Condition(service.name, "waiting", None, 0, time.time(), "")

    async def run(self) -> None:
        """Keep the service running until this is cancelled; then `stop` ends it.

        Raises:
            SluiceError: the service cannot start: it was not healthy once. One that was is never given up.
        """
        while True:
            life = await self._live()
            await self._end_child()
            self._restarts += 1
            await asyncio.sleep(self._judge(life))

    async def stop(self) -> None:
        """End the service: SIGTERM, its grace, SIGKILL. A service that failed stays marked so."""
        if self.condition.phase == "waiting":
            return
        final: Phase = "failed" if self.condition.phase == "failed" else "stopped"
        if final == "stopped" and self._child is not None:
            self._mark("stopping")
        await self._end_child()
        self._mark(final, self.condition.reason)

    async def _live(self) -> Life:
        """One life of the process: from its start until it died, hung, or gave no healthy answer in time."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        try:
            self._child = await start(self.service.command, self._environment, self._log)
        except SluiceError as error:
            return Life(f"did not start: {error}", None)
        failed = self.condition.phase == "failed"  # a service that is only tried again has not recovered
        self._mark("failed" if failed else "starting", self.condition.reason)
        death = asyncio.create_task(self._until_death(self._child))
        try:
            return await self._watch(death)
        finally:
            await end(death)

    async def _watch(self, death: "asyncio.Task[str]") -> Life:
        reason = await self._first(death, self._until_healthy())
        if reason and not self.healthy.is_set() and not death.done():
            raise self._given_up(reason)  # it had all the time that it may take, so there is no second try
        if reason:
            return Life(reason, None)
        since = time.monotonic()
        self._mark("healthy", self.condition.reason)
        self.healthy.set()
        reason = await self._first(death, until_hung(self.service.health))
        if not death.done():
            self._mark("stopping", reason)
        return Life(reason, time.monotonic() - since)

    async def _first(self, death: "asyncio.Task[str]", watch: Coroutine[Any, Any, str]) -> str:
        """What is known first: why the process died, or what `watch` has found."""
        watching = asyncio.create_task(watch)
        try:
            await asyncio.wait({death, watching}, return_when=asyncio.FIRST_COMPLETED)
            return death.result() if death.done() else watching.result()
        finally:
            await end(watching)

    async def _until_healthy(self) -> str:
        """Empty at the first healthy answer; else why the service counts as not started."""
        deadline_s = self.service.start_deadline_s
        if await until_healthy(self.service.health, deadline_s):
            return ""
        return f"gave no healthy answer at {_shown(self.service.health)} within {deadline_s:g} s of its start"

    async def _until_death(self, child: Child) -> str:
        code = await child.wait()
        return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"

    async def _end_child(self) -> None:
        """End the process if it still runs, and whatever it has left behind."""
        if self._child is not None:
            await self._child.stop(self.service.stop_grace_s)
            self._child = None

    def _judge(self, life: Life) -> float:
        """Mark what has become of the service; the seconds until its next start."""
        self._failed_starts = self._failed_starts + 1 if life.healthy_s is None else 0
        if not self.healthy.is_set() and self._failed_starts >= FIRST_TRIES:
            raise self._given_up(life.reason)
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._mark("failed", self._failure(life.reason))
            return RETRY_S
        steady = life.healthy_s is not None and life.healthy_s >= STEADY_S
        pause_s = BACK_OFF_S if steady else self._next_pause_s
        self._next_pause_s = min(2 * pause_s, MAX_BACK_OFF_S)
        self._mark("restarting", life.reason)
        return pause_s

    def _failure(self, reason: str) -> str:
        last = "".join(f" ({line})" for line in last_lines(self._log, 1, self._log_start))
        return f"{self._failed_starts} starts in a row failed: it {reason}{last}; tried again every {RETRY_S:g} s"

    def _given_up(self, reason: str) -> SluiceError:
        self._mark("failed", f"cannot start: it {reason}")
        lines = "".join(f"\n  {line}" for line in last_lines(self._log, LAST_LINES, self._log_start))
        return SluiceError(f"{self.service.name} {self.condition.reason}; its log {self._log} ends with:{lines}")

    def _mark(self, phase: Phase, reason: str = "") -> None:
        pid = self._child.pid if self._child is not None and self._child.running else None
        self.condition = Condition(self.service.name, phase, pid, self._restarts, time.time(), reason)
        self._changed(self.condition)


def last_lines(file: Path, count: int, start: int = 0) -> list[str]:
    """The last lines of a file, or of what stands behind byte `start`; none if it is not there."""
    with contextlib.suppress(OSError), file.open("rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
        return log.read().decode("utf-8", "replace").splitlines()[-count:]
    return []


def _shown(address: str) -> str:
    return address if "@" not in address else address.rpartition("@")[2]
