"""What rank 0 decides -> the same calls on all other ranks, in the same order."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import Any, Literal, cast

import msgpack
import torch
from torch import distributed
from torch.distributed import ProcessGroup

from shared.errors import SluiceError

Name = Literal["open", "load", "train", "save", "gather", "export", "close", "exit"]
PATIENCE = timedelta(days=3650)
"""A follower waits for as long as rank 0 lives; when that dies, its connections close and the wait ends with it."""


class RanksOutOfStep(SluiceError):
    """All processes of the trainer have to begin anew."""


@dataclass(frozen=True, slots=True)
class Order:
    """One call."""

    name: Name
    given: dict[str, Any]


class Orders:
    """A one-way channel from rank 0; every rank must make it at the same time."""

    def __init__(self) -> None:
        self._group = cast(ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))
        self._sending = Lock()
        self.are_out_of_step = False
        """An order failed on rank 0: others may wait within it for what will never come, and can be told nothing."""

    @contextmanager
    def together(self, name: Name, **given: Any) -> Generator[None]:
        """Rank 0: tell all others, and do the same in the body."""
        self.send(name, **given)
        try:
            yield
        except BaseException:  # also a generator that is left before its end, with the others within it
            self.are_out_of_step = True
            raise

    def send(self, name: Name, **given: Any) -> None:
        """Rank 0: tell all others. The service may end while its compute thread has an order on its way."""
        data = cast(bytes, msgpack.packb({"name": name, "given": given}))
        with self._sending:
            distributed.broadcast(torch.tensor([len(data)]), 0, group=self._group)
            distributed.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._group)

    def receive(self) -> Order:
        """The others: the next order. RuntimeError once rank 0 is gone."""
        length = torch.zeros(1, dtype=torch.int64)
        distributed.broadcast(length, 0, group=self._group)
        data = torch.zeros(int(length), dtype=torch.uint8)
        distributed.broadcast(data, 0, group=self._group)
        return Order(**msgpack.unpackb(data.numpy().tobytes()))
