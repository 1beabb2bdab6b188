"""A call to Redis that may find it away -> the same call, repeated until Redis is back: work waits and none is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.logs import Log
from shared.redis_connection import UNREACHABLE

T = TypeVar("T")
WAIT_S = 0.5


class AwaitRedis:
    """Repeats calls for one run; only for calls that do no harm when they are done twice."""

    def __init__(self, log: Log, run: str) -> None:
        self._log, self._run = log, run

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Bounded by the run: it is cancelled when the run or the service ends."""
        while True:
            try:
                return await call()
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._run, error=str(error))
                await asyncio.sleep(WAIT_S)
