"""An engine that may serve -> a worker that the router lists; an engine that may not -> none."""

import asyncio
import contextlib
import time
from typing import Any, cast

import httpx

from shared.logs import Log

CALL_S = 2.0
POLL_S = 0.1
KEEP_S = 1.0
"""The router may have been restarted and know nobody: look this often."""


class RouterSeat:
    """The place of one engine among the router's workers."""

    def __init__(
        self, router_url: str, engine_url: str, log: Log, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(base_url=router_url, trust_env=False, timeout=CALL_S, transport=transport)
        self._engine_url = engine_url
        self._log = log
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()
        self._seated = False
        self.was_taken = False
        """True once the router has listed the engine as healthy."""

    def want(self) -> None:
        """From now on the engine may serve; `keep` sees to it."""
        self._wanted.set()

    async def keep(self) -> None:
        """Hold the seat while it is wanted, through restarts of the router; ends by cancellation only."""
        while True:
            await self._wanted.wait()
            try:
                await self._take()
            except httpx.HTTPError as error:
                if self._seated:
                    self._log.warning("router_unreachable", error=f"{type(error).__name__} {error}".rstrip())
                self._seated = False
            await asyncio.sleep(KEEP_S if self._seated else POLL_S)

    async def seated(self) -> None:
        """Wait until the router has listed the engine as healthy."""
        while not self._seated:
            await asyncio.sleep(POLL_S)

    async def leave(self, deadline_s: float = 3 * CALL_S) -> bool:
        """Give the seat up; True once the router does not list the engine. A router that is down lists nobody."""
        self._wanted.clear()
        until = time.monotonic() + deadline_s
        async with self._lock:
            self._seated = False
            while time.monotonic() < until:
                try:
                    worker = await self._find()
                    if worker is None:
                        return True
                    await self._http.delete(f"/workers/{worker['id']}")
                except httpx.ConnectError:
                    return True
                except httpx.HTTPError as error:
                    self._log.warning("router_unreachable", error=f"{type(error).__name__} {error}".rstrip())
                await asyncio.sleep(POLL_S)
        return False

    async def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self._http.aclose()

    async def _take(self) -> None:
        async with self._lock:
            if not self._wanted.is_set():
                return
            worker = await self._find()
            if worker is None:
                self._seated = False
                (await self._http.post("/workers", json={"url": self._engine_url})).raise_for_status()
            elif bool(worker["is_healthy"]) != self._seated:
                self._seated = bool(worker["is_healthy"])
                self.was_taken = self.was_taken or self._seated
                self._log.info("router_seat", url=self._engine_url, healthy=self._seated)

    async def _find(self) -> dict[str, Any] | None:
        answer = await self._http.get("/workers")
        answer.raise_for_status()
        workers = cast(list[dict[str, Any]], answer.json()["workers"])
        return next((worker for worker in workers if worker["url"] == self._engine_url), None)
