"""What happens in the trainer -> an entry of the run's events; while Redis is away the log line has to do."""

import time
from typing import Any

from redis.asyncio import Redis

from shared.logs import Log
from shared.messages import Event
from shared.redis_connection import UNREACHABLE
from shared.streams import Stream
from shared.topology import EVENTS


async def tell(redis: Redis, run: str, log: Log, event: str, detail: dict[str, Any]) -> None:
    """Log and publish one event. It is never repeated, so nobody reads it twice."""
    log.warning(event, run=run, **detail)
    events: Stream[Event] = Stream(redis, run, EVENTS)
    try:
        await events.publish(Event(time.time(), "trainer", event, detail))
    except UNREACHABLE as error:
        log.warning("redis_unreachable", run=run, error=str(error))
