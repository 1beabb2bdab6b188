"""The trainer's parameters after a step -> a snapshot that later steps do not change."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from services.trainer.weight_buckets import WeightBuckets, plan_buckets
from shared.messages import TensorSpec


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

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._layout: list[list[TensorSpec]] = []
        self._sets: list[WeightBuckets] = []
        self._waiting: Staged | None = None
        self._published: Staged | None = None

    def stage(self, version: int, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Staged:
        """Copy the parameters; a snapshot that still waits to be published is replaced."""
        tensors = [(name, tensor.detach()) for name, tensor in named_tensors]
        if not self._layout:
            self._layout = plan_buckets(tensors, self._limit)
        buckets = self._free(tensors[0][1].device)
        if self._waiting is not None:
            self._waiting.replaced = True
        buckets.copy_from(tensors)
        self._waiting = Staged(version, step, buckets)
        return self._waiting

    def publish(self, staged: Staged) -> None:
        """Keep this snapshot, for engines that come late, and let go of the one that was published before it."""
        assert not staged.replaced, f"version {staged.version} was replaced by a newer snapshot before it was published"
        self._published = staged
        if self._waiting is staged:
            self._waiting = None

    def _free(self, device: torch.device) -> WeightBuckets:
        kept = self._published.buckets if self._published else None
        for buckets in self._sets:
            if buckets is not kept:
                return buckets
        self._sets.append(WeightBuckets(self._layout, device))
        return self._sets[-1]
