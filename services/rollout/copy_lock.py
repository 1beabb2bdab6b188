"""Engines of one host that use one folder -> one that changes it, or several that read it."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.02

Check = Callable[[], None]
"""Raises once there is no time left, or nobody waits any more."""


class CopyLock:
    """A lock on a file, held until it is released or the process ends."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def for_reading(self, check: Check) -> "HeldLock":
        """Beside others that read; waits for one that writes."""
        return self._take(fcntl.LOCK_SH, check)

    def for_writing(self, check: Check) -> "HeldLock":
        """Alone."""
        return self._take(fcntl.LOCK_EX, check)

    def _take(self, kind: int, check: Check) -> "HeldLock":
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    return HeldLock(descriptor)
                except BlockingIOError:
                    check()
                    time.sleep(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise


class HeldLock:
    """To be released once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "HeldLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
