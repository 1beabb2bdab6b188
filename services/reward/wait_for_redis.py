"""Calls to Redis -> the same calls, repeated until Redis answers: an outage lets the work wait and loses none."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.logs import Log
from shared.redis_connection import UNREACHABLE

T = TypeVar("T")
AGAIN_S = 0.5


class RedisPatience:
    """Repeats what may be repeated: every call through here has the same effect once or many times."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def wait_for(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", error=str(error))
                await asyncio.sleep(AGAIN_S)
