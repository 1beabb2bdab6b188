"""The append-only file of Redis, watched -> cut back to a moment ago, as after a loss of power.

SIGKILL alone loses nothing: what Redis has answered it has written, and only the machine's own end takes what is not
synced, with `appendfsync everysec` up to a second of it. Everybody else then remembers what Redis has forgotten.
"""

import asyncio
import os
import signal
import time
from collections import deque
from pathlib import Path

SAMPLE_S = 0.02
KEPT = 200


class AppendOnlyFile:
    """The file in one Redis folder, by the sizes that it had lately."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: deque[tuple[float, Path, int]] = deque(maxlen=KEPT)

    async def watch(self) -> None:
        """Take its size again and again, until cancelled."""
        while True:
            file = self._newest()
            if file is not None:
                self._sizes.append((time.monotonic(), file, file.stat().st_size))
            await asyncio.sleep(SAMPLE_S)

    def cut(self, redis: int, lost_s: float) -> int:
        """Kill the server and take back what it wrote in the last `lost_s` seconds; how many bytes that were."""
        os.kill(redis, signal.SIGSTOP)  # nothing is written between the look at the file and its end
        try:
            return self._truncate(lost_s)
        finally:
            os.kill(redis, signal.SIGKILL)

    def _truncate(self, lost_s: float) -> int:
        file, then = self._newest(), time.monotonic() - lost_s
        sizes = [size for at, sampled, size in self._sizes if sampled == file and at <= then]
        if file is None or not sizes or file.stat().st_size <= sizes[-1]:
            return 0
        lost = file.stat().st_size - sizes[-1]
        os.truncate(file, sizes[-1])
        return lost

    def _newest(self) -> Path | None:
        """Redis 7 has a folder of files, the newest of which grows; older ones have one file."""
        files = [*self._folder.glob("appendonly.aof"), *self._folder.glob("appendonlydir/*.incr.aof")]
        return max(files, key=lambda file: file.stat().st_mtime, default=None)
