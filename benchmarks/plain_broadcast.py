"""Two processes and a number of bytes -> the same bytes in both, by broadcasts and nothing else; or a copy in one."""

import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from benchmarks.received_weights import process_group

c10d: Any = distributed
JOIN_S = 60.0


class PlainBroadcast:
    """A group of two: rank 0 sends."""

    def __init__(self, rank: int, port: int, device: torch.device, chunk_bytes: int = 2**29) -> None:
        """Blocks until the other one is there; rank 0 serves the store at `port` of this machine."""
        self._device, self._chunk = device, chunk_bytes
        store = c10d.TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=JOIN_S))
        self._group = process_group(store, rank, 2, device)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def run(self, nbytes: int) -> None:
        """Send or receive so many bytes, a chunk after the other; they have come when this returns at rank 1."""
        if self._buffer.numel() < min(nbytes, self._chunk):
            self._buffer = torch.randint(255, (min(nbytes, self._chunk),), dtype=torch.uint8, device=self._device)
        for start in range(0, nbytes, self._chunk):
            self._group.broadcast(self._buffer[: min(self._chunk, nbytes - start)], 0).wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def copy_plainly(nbytes: int, device: torch.device) -> float:
    """Seconds that the second copy of so many bytes takes, from memory of the device to memory of the device."""
    source = torch.randint(255, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.monotonic()
    target.copy_(source)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started
