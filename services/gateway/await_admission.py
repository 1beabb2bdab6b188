"""A feeder with nothing to release -> a feeder that wakes as soon as admission may have opened, and rests till then."""

import asyncio
import time
from typing import Any, cast

from redis.asyncio import Redis

from shared.topology import EVENTS, STEPS, WEIGHTS, Keys

EAGER_POLL_S = 0.01
EAGER_S = 2.0
"""How long it looks often after a sign; engines stand idle while admission is open and nobody saw it."""
QUIET_POLL_MS = 100
PAGE = 100


class AdmissionWait:
    """Admission opens through counters, which cannot be waited for; but entries of these streams announce it.

    A drop writes to events in the same transaction; a version is announced on weights before it is served, and the
    step of an sft run on steps. After such an entry the counters are looked at often, else seldom.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._streams = [keys.stream(spec) for spec in (EVENTS, STEPS, WEIGHTS)]
        self._after: dict[Any, Any] = {}
        self._eager_until = time.monotonic() + EAGER_S

    async def wait(self) -> None:
        """Return when the counters should be looked at again."""
        if time.monotonic() < self._eager_until:
            await asyncio.sleep(EAGER_POLL_S)
            return
        if not self._after:
            self._after = {key: await self._newest(key) for key in self._streams}
        answer = cast(list[Any], await self._redis.xread(self._after, count=PAGE, block=QUIET_POLL_MS))
        for key, entries in answer:
            self._after[key.decode()] = entries[-1][0]
            self._eager_until = time.monotonic() + EAGER_S

    async def _newest(self, key: str) -> bytes:
        entries = cast(list[Any], await self._redis.xrevrange(key, count=1))
        return entries[0][0] if entries else b"0-0"
