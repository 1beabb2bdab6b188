"""A version whose evaluation is due -> a wait until its answers are scored, before the next version replaces it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from shared.evaluation import is_complete, is_due, read_tallies
from shared.logs import Log
from shared.messages import Event
from shared.run_settings import RunSettings
from shared.streams import Stream
from shared.topology import EVENTS, Keys

POLL_S = 0.2


class EvaluationGate:
    """Holds a version back for the evaluation of the one before it."""

    def __init__(self, redis: Redis, settings: RunSettings, leave: Callable[[], Awaitable[bool]], log: Log) -> None:
        """`leave` is asked while the gate waits; the gate opens as soon as it says so."""
        self._redis, self._settings, self._leave, self._log = redis, settings, leave, log
        self._keys = Keys(settings.name)

    async def wait(self, version: int) -> bool:
        """False if the evaluation of `version` did not complete within eval.deadline_s seconds."""
        if version < 0 or not is_due(self._settings, version):
            return True
        until = time.monotonic() + self._settings.eval.deadline_s
        while not is_complete(self._settings, await read_tallies(self._redis, self._keys, version)):
            if time.monotonic() > until:
                await self._report(version)
                return False
            if await self._leave():
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _report(self, version: int) -> None:
        deadline_s = self._settings.eval.deadline_s
        self._log.warning("evaluation_late", run=self._keys.run, version=version, deadline_s=deadline_s)
        events: Stream[Event] = Stream(self._redis, self._keys.run, EVENTS)
        detail = {"version": version, "deadline_s": deadline_s}
        await events.publish(Event(time.time(), "trainer", "evaluation_late", detail))
