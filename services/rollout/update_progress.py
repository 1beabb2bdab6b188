"""How far an engine is with a version -> its part in Redis; the trainer's word -> a paused engine that may go on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from redis.asyncio import Redis

from services.rollout.engine_calls import EngineError
from shared.enrolment import Part, State, Word, await_word, listen, write_answer
from shared.logs import Log
from shared.redis_connection import UNREACHABLE
from shared.tasks import end
from shared.topology import Keys

LOOK_S = 0.25
SILENCE_S = 8.0
"""A trainer that has said nothing for so long is gone, or cannot reach Redis either."""
WRITE_S = 2.0
ANSWER_S = 1.0
"""For Redis to answer a look: one that hangs is as silent as a trainer that is gone, and the engine is paused."""


class NotCleared(EngineError):
    """The weights will not come. Nothing of them was loaded."""


class UpdateProgress:
    """The part of one engine in one announcement, while it works on that."""

    def __init__(self, redis: Redis, keys: Keys, version: int, engine: str, go: Part, log: Log) -> None:
        self._redis, self._keys, self._version, self._engine = redis, keys, version, engine
        self._part, self._log = go, log
        self._changed, self._closed = asyncio.Event(), False

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncGenerator["UpdateProgress"]:
        """Write the states that are entered; none is written after the end of the block."""
        writer = asyncio.create_task(self._write())
        try:
            yield self
        finally:
            self._closed = True
            self._changed.set()
            await asyncio.wait((writer,), timeout=WRITE_S)
            await end(writer)

    def enter(self, state: State) -> None:
        """Go on at once: requests may be waiting, and the word is written meanwhile."""
        self._part = replace(self._part, state=state, since=time.time())
        self._changed.set()

    async def cleared(self, until: float) -> None:
        """Wait until the trainer says that all engines of the group are ready.

        Args:
            until: seconds since the epoch.

        Raises:
            NotCleared: one of them or the trainer cannot go on, or the time is up.
        """
        last, heard = None, time.monotonic()
        while time.time() < until:
            word = await self._listen()
            if word is not None and word.word == "send":
                return
            if word is not None and word.word == "over":
                raise NotCleared("another engine of its group, or the trainer, could not go on")
            if word != last:
                last, heard = word, time.monotonic()
            if time.monotonic() - heard > SILENCE_S:
                raise NotCleared(f"the trainer was silent for {SILENCE_S:g} s while the engine was ready")
            await self._wait(min(LOOK_S, until - time.time()))
        raise NotCleared("the deadline passed while the engine was ready and others were not")

    async def _listen(self) -> Word | None:
        with contextlib.suppress(*UNREACHABLE, TimeoutError):  # as silent as a trainer that is gone
            async with asyncio.timeout(ANSWER_S):
                word = await listen(self._redis, self._keys, self._version, self._engine)
            return word if word is not None and word.announcement == self._part.announcement else None
        return None

    async def _wait(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s + ANSWER_S):
                await await_word(self._redis, self._keys, self._version, self._engine, deadline_s)
        except (*UNREACHABLE, TimeoutError):
            await asyncio.sleep(LOOK_S)

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._closed:
                return
            try:
                await write_answer(self._redis, self._keys, self._version, self._engine, self._part)
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._keys.run, error=str(error))
