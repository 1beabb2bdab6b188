"""What happens in this service -> a log line and an entry of the run's events."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from shared.logs import Log
from shared.messages import Event
from shared.redis_connection import UNREACHABLE
from shared.streams import Stream

Tell = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Called with the name of the event and its details."""


def teller(log: Log, events: Stream[Event]) -> Tell:
    """A `Tell` that never fails: while Redis is out of reach the log line has to do."""

    async def tell(event: str, detail: dict[str, Any]) -> None:
        log.warning(event, **detail)
        try:
            await events.publish(Event(time.time(), "reward", event, detail))
        except UNREACHABLE as error:
            log.warning("redis_unreachable", error=str(error))

    return tell
