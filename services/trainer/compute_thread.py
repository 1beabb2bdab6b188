"""Blocking tensor work -> awaited on one thread of its own, so that leases, heartbeats and publishing go on."""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from shared.errors import RunRejected

P = ParamSpec("P")
R = TypeVar("R")


class ComputeThread:
    """One thread, so that a step, a snapshot and a checkpoint never see each other's weights half done."""

    def __init__(self, threads: int) -> None:
        """`threads`: CPU threads of each tensor operation."""
        self._executor = ThreadPoolExecutor(1, "compute", set_up_threads, (threads,))

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """RunRejected if the device's memory does not suffice."""
        with in_memory():
            return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Start nothing more; what runs ends by itself and its result is not used."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def in_memory() -> Generator[None]:
    """RunRejected if the device's memory does not suffice for the body."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunRejected(f"out of device memory ({error}); lower trainer.max_tokens_per_gpu") from error


def set_up_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    # moments of weights that get no gradient for long become denormal numbers, which a CPU multiplies slowly
    torch.set_flush_denormal(True)
