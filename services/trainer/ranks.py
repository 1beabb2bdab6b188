"""The processes that train one model together: their sums, maxima and tables; a single process needs no messages."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import distributed
from torch.distributed import ProcessGroup, ReduceOp
from torch.distributed.distributed_c10d import get_node_local_rank


class Ranks(Protocol):
    """What a step needs of the other processes. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def writers(self) -> ProcessGroup | None:
        """The group by which checkpoints are written beside the training; None for one process."""
        ...

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks; any shape, the same on every rank."""
        ...

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of each element over ranks."""
        ...

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """[own, columns] -> [all, columns] on the CPU: the rows of rank 0, then those of rank 1, and so on."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """A trainer of one process."""

    rank: int = 0
    size: int = 1
    writers: ProcessGroup | None = None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


@dataclass(frozen=True, slots=True)
class ManyRanks:
    """The processes of one torchrun; small sums go over the CPU, so that they never wait for a device's queue."""

    rank: int
    size: int
    small: ProcessGroup
    """Gloo, for what is counted."""
    writers: ProcessGroup | None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, ReduceOp.SUM)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return self._reduce(values, ReduceOp.MAX)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([len(rows)]), group=self.small)
        most = max(int(count) for count in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded, group=self.small)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def _reduce(self, values: torch.Tensor, operation: ReduceOp.RedOpType) -> torch.Tensor:
        reduced = values.detach().cpu().clone()
        distributed.all_reduce(reduced, operation, group=self.small)
        return reduced.to(values.device)


def join_ranks(deadline_s: float) -> Ranks:
    """The ranks of the torchrun that started this process; one rank without one.

    Args:
        deadline_s: after which a rank that waits for another one in a collective call gives up.
    """
    if not distributed.is_torchelastic_launched():
        return OneRank()
    timeout = timedelta(seconds=deadline_s)
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timeout)
    return ranks_of_group(timeout)


def ranks_of_group(timeout: timedelta) -> Ranks:
    """The ranks of the process group that this process has joined."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if size == 1:
        return OneRank()
    small, writers = (cast(ProcessGroup, distributed.new_group(backend="gloo", timeout=timeout)) for _ in range(2))
    return ManyRanks(rank, size, small, writers)


def _local_device() -> int:
    return get_node_local_rank(0) % torch.cuda.device_count()
