"""The turns of a run -> an engine that has device memory while it generates, and none while the trainer trains."""

import asyncio
import contextlib
import time
from typing import Protocol

from redis.asyncio import Redis

from services.rollout.engine_calls import EngineError
from services.rollout.engine_life import Life, Lives
from services.rollout.engine_update import EngineUpdate
from shared.logs import Log
from shared.memory_parts import PRESENT, MemoryPart, forget_memory_part, write_memory_part
from shared.messages import MemoryTurn
from shared.redis_connection import UNREACHABLE
from shared.runs import HEARTBEAT_S, announce, withdraw
from shared.streams import Stream
from shared.tasks import end
from shared.topology import MEMORY, Keys

BLOCK_S = 0.5
RETRY_S = 0.5
GIVE_SHARE = 0.75
"""Part of the time until the trainer gives up in which an engine has to give its memory away, or is ended."""


class Memory(Protocol):
    """The memory of one engine's device, as long as a run is served."""

    async def start(self) -> Life:
        """The engine's next life, once there is memory for it; raises what Lives.start raises."""
        ...

    def serves(self, update: EngineUpdate | None) -> None:
        """The life that was started is up, and this is how it can be made to give its memory away; None at its end."""
        ...

    async def follow(self) -> None:
        """Does what the trainer asks for, through all lives; returns never."""
        ...


class KeepMemory:
    """The engine has its part of the memory all the time."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives

    async def start(self) -> Life:
        """See Memory."""
        return await self._lives.start()

    def serves(self, update: EngineUpdate | None) -> None:
        """See Memory."""

    async def follow(self) -> None:
        """See Memory."""
        await asyncio.Event().wait()


class TakeTurns:
    """The engine has the memory in the engines' turn.

    A process that is asked for its memory and does not give it is ended, which frees it, too. Before the first turn of
    the engines none is launched: the trainer loads its model first.
    """

    def __init__(self, redis: Redis, run: str, engine: str, lives: Lives, log: Log) -> None:
        """`engine`: the name of its sidecar."""
        self._redis, self._run, self._engine, self._lives, self._log = redis, run, engine, lives, log
        self._turns: Stream[MemoryTurn] = Stream(redis, run, MEMORY)
        self._may_start = asyncio.Event()
        self._starting: asyncio.Future[Life] | None = None
        self._update: EngineUpdate | None = None

    async def start(self) -> Life:
        """See Memory. A start that the trainer's turn comes upon is given up, and begun anew in the engines' next."""
        while True:
            await self._may_start.wait()
            starting = self._starting = asyncio.ensure_future(self._lives.start())
            try:
                await asyncio.wait([starting])
            finally:
                await end(starting)
            if self._may_start.is_set() and not starting.cancelled():
                return starting.result()

    def serves(self, update: EngineUpdate | None) -> None:
        """See Memory."""
        self._update, self._starting = update, None

    async def follow(self) -> None:
        """See Memory."""
        work = asyncio.ensure_future(self._obey()), asyncio.ensure_future(self._say_present())
        try:
            await asyncio.gather(*work)
        finally:
            await end(*work)
            with contextlib.suppress(*UNREACHABLE):
                await withdraw(self._redis, self._run, self._member)
                await forget_memory_part(self._redis, Keys(self._run), self._engine)

    @property
    def _member(self) -> str:
        return f"{PRESENT}/{self._engine}"

    async def _say_present(self) -> None:
        while True:
            with contextlib.suppress(*UNREACHABLE):
                await announce(self._redis, self._run, self._member)
            await asyncio.sleep(HEARTBEAT_S)

    async def _obey(self) -> None:
        """The newest turn counts: those before it are over."""
        last = "0"
        while True:
            try:
                newest = await self._turns.newest() if last == "0" else None
                entries = [newest] if newest else await self._turns.read(last, block_s=BLOCK_S)
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._run, error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if entries:
                last, turn = entries[-1]
                await self._enter(turn)

    async def _enter(self, turn: MemoryTurn) -> None:
        if turn.holder == "engines":
            self._may_start.set()
            return
        self._may_start.clear()
        begun = time.time()
        await self._tell(MemoryPart(turn.turn, "releasing", begun))
        until = begun + max(turn.until - begun, 0) * GIVE_SHARE
        reason = ""
        if self._update is not None:
            reason = await self._give(self._update, until)
        if self._update is None or reason:
            await self._end_process()
        has_process = self._update is not None and not reason
        state, seconds = "released" if has_process else "none", time.time() - begun
        self._log.info("memory_given", run=self._run, turn=turn.turn, state=state, seconds=seconds)
        await self._tell(MemoryPart(turn.turn, state, time.time(), seconds, reason))

    async def _give(self, update: EngineUpdate, until: float) -> str:
        """Returns why the engine did not give its memory; empty if it did."""
        limit = until - time.time()
        try:
            async with asyncio.timeout(limit):
                await update.give_memory(until)
        except (EngineError, TimeoutError) as error:
            why = str(error) or f"it did not give its memory away within {limit:.0f} s"
            self._log.error("memory_not_given", run=self._run, reason=why)
            return why
        return ""

    async def _end_process(self) -> None:
        if self._starting is not None:
            await end(self._starting)
        await self._lives.stop(grace_s=0)

    async def _tell(self, part: MemoryPart) -> None:
        """The trainer waits for it."""
        while True:
            try:
                return await write_memory_part(self._redis, Keys(self._run), self._engine, part)
            except UNREACHABLE as error:
                self._log.warning("redis_unreachable", run=self._run, error=str(error))
                await asyncio.sleep(RETRY_S)
