"""A tensor's bytes and those of the version before -> a compressed frame for each piece that changed."""

from collections.abc import Iterator

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 1
"""Of zstd. Higher ones take several times as long on such bytes and save less than a hundredth."""

Bytes = NDArray[np.uint8]


def pieces_of(content: Bytes, size: int) -> Iterator[Bytes]:
    """Views of `size` bytes each, the last one of what is left."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def encode_piece(new: Bytes, base: Bytes) -> bytes:
    """The frame that makes `new` of `base`; empty if they are the same. Afterwards `base` is a copy of `new`."""
    np.bitwise_xor(new, base, out=base)
    frame = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(base.data) if base.any() else b""
    np.copyto(base, new)
    return frame
