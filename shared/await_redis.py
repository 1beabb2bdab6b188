"""A call to Redis that may find it away -> the same call, repeated until Redis is back: work waits and none is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.errors import SluiceError
from shared.logs import Log
from shared.redis_connection import UNREACHABLE

T = TypeVar("T")
WAIT_S = 0.5
DEADLINE_S = 600.0
TELL_EVERY_S = 10.0


class Outage:
    """How long Redis has been away, as one caller sees it."""

    def __init__(self, log: Log, run: str, deadline_s: float = DEADLINE_S) -> None:
        self._log, self._run, self._deadline_s = log, run, deadline_s
        self._since = self._told = 0.0

    async def wait(self, error: Exception) -> None:
        """Wait a moment before the next try; SluiceError when Redis has been away for longer than the deadline."""
        now = time.monotonic()
        self._since = self._since or now
        away_s = now - self._since
        if away_s >= self._deadline_s:
            raise SluiceError(
                f"Redis took no call for {away_s:.0f} s ({error}); start it, give it memory and disk,"
                " or raise redis.outage_deadline_s; then start this service again"
            ) from error
        if not self._told or now - self._told >= TELL_EVERY_S:
            self._log.warning("redis_unreachable", run=self._run, away_s=round(away_s, 1), error=str(error))
            self._told = now
        await asyncio.sleep(WAIT_S)

    def over(self) -> None:
        """A call came through."""
        if self._since:
            self._log.info("redis_is_back", run=self._run, away_s=round(time.monotonic() - self._since, 1))
        self._since = self._told = 0.0


class AwaitRedis:
    """Repeats calls for one run; only for calls that do no harm when they are done twice."""

    def __init__(self, log: Log, run: str, deadline_s: float = DEADLINE_S) -> None:
        self._log, self._run, self._deadline_s = log, run, deadline_s

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns; SluiceError when Redis has been away for longer than the deadline."""
        outage = Outage(self._log, self._run, self._deadline_s)
        while True:
            try:
                answer = await call()
            except UNREACHABLE as error:
                await outage.wait(error)
            else:
                outage.over()
                return answer
