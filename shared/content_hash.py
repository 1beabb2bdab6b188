"""Bytes -> 128 bits in hex that tell damaged ones from those that were written; no protection against forgery."""

from typing import Any, Protocol

import xxhash
from numpy.typing import NDArray

NAME = "xxh3-128"
"""Goes along with every hash that is written down."""

Content = bytes | memoryview | NDArray[Any]


class RunningHash(Protocol):
    """Of bytes that come one after the other."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def running_hash() -> RunningHash:
    """Of nothing yet."""
    return xxhash.xxh3_128()


def content_hash(*parts: Content) -> str:
    """Of all parts, one after the other."""
    running = running_hash()
    for part in parts:
        running.update(part)
    return running.hexdigest()
