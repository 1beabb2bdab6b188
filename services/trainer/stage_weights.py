"""The trainer's parameters after a step -> a snapshot that later steps do not change."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from services.trainer.weight_buckets import WeightBuckets, layout_bytes, plan_buckets
from shared.messages import TensorSpec

COPIES = 2
DEVICE_SHARE = 0.3
"""The largest part of a GPU's free memory for copies; before the first step most of it is what the step will need."""


def fits_on_device(nbytes: int, free_bytes: int) -> bool:
    """Whether copies of weights of that size leave enough of a GPU's memory to train in."""
    return COPIES * nbytes <= DEVICE_SHARE * free_bytes


@dataclass
class Staged:
    """The weights after a step, on their way to the engines."""

    version: int
    step: int
    buckets: WeightBuckets
    replaced: bool = False
    """True once a newer snapshot took its place; it was never published then."""


class Stage:
    """Room for two snapshots: the newest one, and the one that engines are being given."""

    def __init__(self, limit_bytes: int, place: str = "auto") -> None:
        """`place`: `device`, `host`, or `auto`, which takes the memory of the parameters' device if they fit."""
        self._limit, self._place = limit_bytes, place
        self._sets: list[WeightBuckets] = []
        self._waiting: Staged | None = None
        self._published: Staged | None = None
        self._choosing = threading.Lock()

    def stage(self, version: int, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Staged:
        """Copy the parameters; a snapshot that still waits to be published is replaced."""
        if not self._sets:
            named_tensors = list(named_tensors)
            self._sets = self._plan(plan_buckets(named_tensors, self._limit), named_tensors[0][1].device)
        with self._choosing:
            if self._waiting is not None:
                self._waiting.replaced = True
            kept = self._published.buckets if self._published else None
            buckets = next(each for each in self._sets if each is not kept)
            self._waiting = staged = Staged(version, step, buckets)
        buckets.copy_from((name, tensor.detach()) for name, tensor in named_tensors)
        return staged

    def publish(self, staged: Staged) -> bool:
        """Keep this snapshot, for engines that come late, and let go of the one that was published before it.

        False if it was replaced: it changes, or has changed already.
        """
        with self._choosing:
            if not staged.replaced:
                self._published, self._waiting = staged, None
        return not staged.replaced

    def _plan(self, layout: list[list[TensorSpec]], device: torch.device) -> list[WeightBuckets]:
        """Both copies at once, before the first step: what is missing later would end the run in the middle of one."""
        on_host = self._place == "host"
        if self._place == "auto" and device.type == "cuda":
            on_host = not fits_on_device(layout_bytes(layout), _free_memory(device))
        return [WeightBuckets(layout, device, on_host) for _ in range(COPIES)]


def _free_memory(device: torch.device) -> int:
    """Bytes that the driver has, and those that torch keeps of it without using them."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
