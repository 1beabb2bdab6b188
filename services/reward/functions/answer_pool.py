"""Answers to compare -> child processes with a hard time limit; one that overruns is killed and replaced."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any, cast

import msgpack

from services.reward.functions.verify_math import HEADER
from services.reward.score import Score, ScoringFailed
from shared.errors import RunRejected
from shared.messages import MAX_ENTRY_BYTES

START_DEADLINE_S = 60.0
END_DEADLINE_S = 5.0
MODULE = "services.reward.functions.verify_math"


class AnswerPool:
    """A fixed number of places for child processes; an empty place is filled by whoever gets it."""

    def __init__(self, size: int, limit_s: float) -> None:
        self._size, self._limit_s = size, limit_s
        self._places: asyncio.Queue[Process | None] = asyncio.Queue()
        self._running: set[Process] = set()

    async def start(self) -> None:
        """Start all processes; RunRejected if they do not come up."""
        for process in await asyncio.gather(*(self._spawn() for _ in range(self._size))):
            self._places.put_nowait(process)

    async def check(self, answer: str, label: str) -> Score | None:
        """1 if answer and label are equal, else 0; None if the time limit did not suffice.

        Raises:
            ScoringFailed: the process died over it.
        """
        process = await self._places.get()
        try:
            process = process or await self._spawn()
            equal, detail = await asyncio.wait_for(_ask(process, answer, label), self._limit_s)
        except TimeoutError:
            await self._replace(process)
            return None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self._replace(process)
            raise ScoringFailed("the process that compares answers died over this one") from error
        except BaseException:
            await self._replace(process)  # left in the middle of a question, it would answer the next one with this one
            raise
        self._places.put_nowait(process)
        return Score(float(equal), detail)

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(self._end(process) for process in list(self._running)))

    async def _replace(self, process: Process | None) -> None:
        self._places.put_nowait(None)
        if process is not None:
            await self._end(process)

    async def _spawn(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE, str(self._limit_s), stdin=PIPE, stdout=PIPE
        )
        self._running.add(process)
        try:
            await asyncio.wait_for(_read(process), START_DEADLINE_S)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            await self._end(process)
            raise RunRejected(
                "reward.type math cannot start its processes; install sluice-rl[reward], which brings math-verify"
            ) from error
        return process

    async def _end(self, process: Process) -> None:
        self._running.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait_for(process.communicate(), END_DEADLINE_S)


async def _ask(process: Process, answer: str, label: str) -> tuple[bool, dict[str, Any]]:
    assert process.stdin is not None, "the process was started with a pipe"
    body = cast(bytes, msgpack.packb((answer, label)))
    process.stdin.write(HEADER.pack(len(body)) + body)
    await process.stdin.drain()
    equal, detail = await _read(process)
    return bool(equal), detail


async def _read(process: Process) -> Any:
    assert process.stdout is not None, "the process was started with a pipe"
    (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
    if length > MAX_ENTRY_BYTES:
        raise ConnectionError("the process wrote something else than an answer")
    return msgpack.unpackb(await process.stdout.readexactly(length))
