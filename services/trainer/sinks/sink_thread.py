"""Calls that may block for ever -> awaited on a thread that holds up neither training nor the end of the process."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")
Call = tuple[Callable[[], Any], "Future[Any]"]


class SinkThread:
    """One call after the other. A thread of an executor would not do: the interpreter waits for those when it ends."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"metrics-{name}", daemon=True)

    async def run(self, call: Callable[[], R], deadline_s: float, late: Callable[[], None]) -> R:
        """What the call returns or raises; `late` is called each time that another deadline has passed without it."""
        if self._thread.ident is None:  # not before: a run may be refused while its sinks wait for it
            self._thread.start()
        future: Future[R] = Future()
        self._calls.put((call, future))
        waiting = asyncio.wrap_future(future)
        while not (await asyncio.wait([waiting], timeout=deadline_s))[0]:
            late()
        return waiting.result()

    def close(self) -> None:
        """End the thread after the calls that it has been given, if they ever end."""
        self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, future = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the call
                future.set_exception(error)
