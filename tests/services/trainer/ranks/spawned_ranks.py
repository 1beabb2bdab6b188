"""A function of the ranks -> its result on each of several real processes that joined a group, within a deadline."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from services.trainer.compute_thread import set_up_threads
from services.trainer.ranks import Ranks, ranks_of_group

COLLECTIVE_S = 60.0
Task = Callable[[Ranks], Any]
"""Of a module, so that it can be sent; what it returns can be read by `torch.load`."""


class SpawnedRanks:
    """Processes of one task; they run while others do."""

    def __init__(self, size: int, task: Task, folder: Path, on_gpus: bool = False) -> None:
        """`folder` is new and theirs alone; `on_gpus`: a GPU each, and NCCL beside gloo."""
        folder.mkdir(parents=True)
        self._folder = folder
        make = _context().Process
        self._processes = [
            make(target=_join, args=(rank, size, task, folder, on_gpus), daemon=True) for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def results(self, deadline_s: float) -> list[Any]:
        """By rank; AssertionError with what a rank raised, and none is left over."""
        until = time.monotonic() + deadline_s
        try:
            while any(process.is_alive() for process in self._processes) and not self._failed():
                assert time.monotonic() < until, f"ranks in {self._folder} are not done after {deadline_s} s"
                next(p for p in self._processes if p.is_alive()).join(0.1)
        finally:
            self.end()
        assert not self._failed(), "\n".join(self._said())
        return [torch.load(_result(self._folder, rank)) for rank in range(len(self._processes))]

    def end(self) -> None:
        """Kill those that are alive."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(10)

    def _failed(self) -> bool:
        return any(process.exitcode for process in self._processes)

    def _said(self) -> list[str]:
        return [_exit(process) for process in self._processes] + [p.read_text() for p in self._folder.glob("*.error")]


@cache
def _context() -> ForkServerContext:
    """Ranks are forked from one process without threads that has imported the trainer: seconds are saved for each."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.trainer.team", "tests.services.trainer.ranks.spawned_ranks"])
    return context


def _join(rank: int, size: int, task: Task, folder: Path, on_gpus: bool) -> None:
    try:
        set_up_threads(1)
        timeout = timedelta(seconds=COLLECTIVE_S)
        if on_gpus:
            torch.cuda.set_device(rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo", f"file://{folder}/store", timeout, size, rank
        )
        torch.save(task(ranks_of_group(timeout)), _result(folder, rank))
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        (folder / f"rank_{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise


def _exit(process: BaseProcess) -> str:
    with suppress(ValueError):
        return f"{process.name} ended with {process.exitcode}"
    return f"{process.name} is gone"


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.pt"
