"""What happens to one engine -> entries of its run's events; while Redis is away the log line has to do."""

import time
from typing import Any

from redis.asyncio import Redis

from shared.logs import Log
from shared.messages import Event
from shared.redis_connection import UNREACHABLE
from shared.streams import Stream
from shared.topology import EVENTS


class EngineEvents:
    """Of the engine beside one sidecar, in one run."""

    def __init__(self, redis: Redis, run: str, engine: str, log: Log) -> None:
        """`engine`: the name of its sidecar."""
        self._events: Stream[Event] = Stream(redis, run, EVENTS)
        self._run, self._engine, self._log = run, engine, log

    async def tell(self, event: str, **detail: Any) -> None:
        """Log and publish one event."""
        self._log.error(event, run=self._run, **detail)
        try:
            await self._events.publish(Event(time.time(), "engine", event, {"engine": self._engine, **detail}))
        except UNREACHABLE as error:
            self._log.warning("redis_unreachable", run=self._run, error=str(error))
