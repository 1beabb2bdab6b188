"""Enrolled engines -> a process group that the trainer leads: one store for ever, one group for each membership."""

import _thread
import asyncio
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from services.trainer.beside_training import BesideTraining
from services.trainer.weight_buckets import WeightBuckets

T = TypeVar("T")
c10d: Any = distributed
"""What is used of it is not part of its typed surface: stores and process groups without a default group."""
STALL_S, SLOWEST_BYTES_S = 5.0, 100e6
"""A broadcast over the CPU that takes longer than this has stalled: seconds, and bytes a second on top."""
NCCL_ENVIRONMENT = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}
"""SGLang sets the first one for itself, and NCCL never connects if the two sides differ; multicast stays off."""


@dataclass(frozen=True, slots=True)
class Member:
    """One engine in a group: its ranks follow those of the members before it; the trainer is rank 0."""

    name: str
    incarnation: str
    ranks: int


class MeetingPoint:
    """The key-value store through which a group finds itself, served by the trainer on a free port of `host`."""

    def __init__(self, host: str) -> None:
        listener = _listen(host)
        self.host, self.port = host, int(listener.getsockname()[1])
        self.store = c10d.TCPStore(
            host, self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def close(self) -> None:
        """Set everybody free who waits at the store. Groups that were made there stay."""
        self.store = None


def forget(failure: BaseException) -> None:
    """Let go of a group that could not be made.

    The traceback of the failure holds half a group, whose connections an engine could still join and wait at; left
    alone, they would stay until the garbage collector comes by.
    """
    traceback.clear_frames(failure.__traceback__)


class Communicator:
    """A process group with the engines, led by this process, beside any other group that the trainer has."""

    def __init__(
        self, meeting: MeetingPoint, name: str, members: Sequence[Member], backend: str, wait_s: float
    ) -> None:
        """Blocks until all members have joined; RuntimeError after `wait_s` seconds."""
        self.name, self.members, self._beside = name, tuple(members), BesideTraining()
        world_size = 1 + sum(member.ranks for member in members)
        device = "cpu" if backend == "gloo" else "cuda"
        timeout = timedelta(seconds=wait_s)
        # A connection of its own: who waits on one keeps others from it, and a group that holds on to the server itself
        # would keep it open for engines that nobody meets there any more.
        store = c10d.TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=timeout)
        # The names under which `torch.distributed` looks for its peers in the engines' processes.
        for prefix in (name, f"{name}/", f"{device}/"):
            store = c10d.PrefixStore(prefix, store)
        self._group: Any = (_gloo if backend == "gloo" else _nccl)(store, meeting.host, world_size, timeout)

    def broadcast(self, buckets: WeightBuckets) -> None:
        """Send the buckets in order; blocks until the engines have them. RuntimeError when the group breaks.

        On the CPU an engine that takes nothing breaks the group after the seconds that its bucket may take: gloo
        cannot be aborted, but frees every other member when it gives up.
        """
        group = self._group
        try:
            with self._beside.on(buckets.device):
                for bucket in buckets.to_send():
                    options = c10d.BroadcastOptions()
                    options.rootRank, options.rootTensor = 0, 0
                    options.timeout = timedelta(seconds=STALL_S + sum(t.nbytes for t in bucket) / SLOWEST_BYTES_S)
                    for work in [group.broadcast([tensor], options) for tensor in bucket]:
                        work.wait()
        finally:
            del group  # an exception keeps this frame, and connections close with the last reference to the group

    def abort(self) -> None:
        """Free whoever is blocked in `broadcast`, here or in an engine; the group cannot be used any more.

        The connections of gloo close with the last reference to the group.
        """
        group, self._group = self._group, None
        if group is not None:
            group.abort()


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Run blocking work in a thread of its own, which does not keep the process alive if it never returns."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (handed to whoever awaits the future)
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    _thread.start_new_thread(run, ())  # `Thread.start` would hold the loop up until the new one has run
    return future


def _listen(host: str) -> socket.socket:
    """A socket on `host` alone where that is an address of this machine, else (behind a service name) on all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for address in (host, ""):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((address, 0))
        except OSError:
            listener.close()
            if not address:
                raise
        else:
            return listener
    raise AssertionError("the loop returns or raises")


def _gloo(store: Any, host: str, world_size: int, timeout: timedelta) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._timeout = timeout
    # Without a device, gloo listens on whatever address the host's own name resolves to.
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    return c10d.ProcessGroupGloo(store, 0, world_size, options)


def _nccl(store: Any, host: str, world_size: int, timeout: timedelta) -> Any:
    del host  # NCCL finds the interface itself
    os.environ.update(NCCL_ENVIRONMENT)
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return c10d.ProcessGroupNCCL(store, 0, world_size, options)
