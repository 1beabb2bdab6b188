"""The commits of a run's ledger -> one sink, each once and in order, whatever the sink does meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from services.trainer.commit_reader import CommitReader
from services.trainer.sinks.sink import OpenSink, Place, Row, Sink
from services.trainer.sinks.sink_thread import SinkThread
from shared.logs import Log
from shared.redis_connection import UNREACHABLE

R = TypeVar("R")
DEADLINE_S = 60.0
"""Seconds after which a call of a sink is told as hanging, and again each time that they pass."""
POLL_S = 0.5
LONGEST_PAUSE_S = 60.0
Tell = Callable[[str, dict[str, object]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of a feed's waits; a pause doubles with each failure in a row."""

    poll_s: float = POLL_S
    deadline_s: float = DEADLINE_S
    longest_pause_s: float = LONGEST_PAUSE_S


class MetricsFeed:
    """Runs beside the training and raises nothing into it: what fails is told, counted and tried again."""

    def __init__(
        self,
        name: str,
        open_sink: OpenSink,
        place: Place,
        reader: CommitReader,
        log: Log,
        tell: Tell,
        patience: Patience,
    ) -> None:
        """`written` is the last step that the sink has, as far as is known here."""
        self.name, self.written, self.failures, self.hangs = name, 0, 0, 0
        self._open_sink, self._place, self._reader = open_sink, place, reader
        self._log, self._tell, self._patience = log, tell, patience
        self._thread = SinkThread(name)
        self._sink: Sink | None = None
        self._in_a_row, self._begun = 0, 0.0

    async def follow(self) -> None:
        """Write what is committed, until cancelled."""
        while True:
            is_caught_up = await self.advance()
            if is_caught_up:
                await asyncio.sleep(self._patience.poll_s)

    async def advance(self) -> bool:
        """Write the next rows; True if there were none. A failure is followed by its pause."""
        try:
            rows = await self._reader.after(await self._ready())
            if not rows:
                return True
            await self._call(partial(self._write, rows))
            self.written, self._in_a_row = rows[-1].step, 0
        except UNREACHABLE as error:  # the loop waits for Redis and tells of it
            self._log.debug("metrics_wait_for_redis", run=self._place.run, sink=self.name, error=str(error))
            await asyncio.sleep(self._patience.poll_s)
        except Exception as error:  # noqa: BLE001 - a sink is somebody else's program, which may raise anything
            await self._failed(error)
        return False

    async def finish(self, until: int) -> None:
        """Write all up to a step and close; to be cancelled at its deadline."""
        while self.written < until:
            if await self.advance():
                break
        await self._call(self._close)

    def let_go(self) -> None:
        """End the thread once it is free."""
        self._thread.close()

    async def _ready(self) -> int:
        """Open the sink if it is not; its last row."""
        newest = await self._reader.newest() if self._sink is None else 0
        self.written = await self._call(partial(self._open, newest))
        return self.written

    # The sink is touched on its thread alone, so that a call whose waiter was ended is over when the next one begins.

    def _open(self, newest: int) -> int:
        if self._sink is None:
            self._sink = self._open_sink(self._place, newest)
        return self._sink.last

    def _write(self, rows: list[Row]) -> None:
        assert self._sink is not None, "rows are read once the sink is open"
        self._sink.write(rows)

    def _close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    async def _failed(self, error: Exception) -> None:
        self.failures, self._in_a_row = self.failures + 1, self._in_a_row + 1
        what = f"{type(error).__name__}: {error}"
        fields: dict[str, object] = {"sink": self.name, "after_step": self.written, "error": what}
        self._log.warning("metrics_sink_failed", run=self._place.run, failures=self.failures, **fields)
        if self._in_a_row == 1:
            await self._tell("metrics_sink_failed", fields)
        try:
            await self._call(self._close)
        except Exception as broken:  # noqa: BLE001 - opening it anew says what is left of it
            self._log.warning("metrics_sink_not_closed", run=self._place.run, sink=self.name, error=str(broken))
        await asyncio.sleep(min(2.0 ** (self._in_a_row - 1) * self._patience.poll_s, self._patience.longest_pause_s))

    async def _call(self, call: Callable[[], R]) -> R:
        self._begun = time.monotonic()
        return await self._thread.run(call, self._patience.deadline_s, self._late)

    def _late(self) -> None:
        self.hangs += 1
        fields = {"sink": self.name, "seconds": round(time.monotonic() - self._begun, 1), "hangs": self.hangs}
        self._log.warning("metrics_sink_hangs", run=self._place.run, **fields)
