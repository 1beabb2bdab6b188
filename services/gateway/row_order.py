"""(epoch, position) -> row of a dataset: the order of the file, or a seeded permutation of its own for each epoch."""

import zlib

import numpy as np
from numpy.typing import NDArray


class RowOrder:
    """The order of one dataset in one run. It depends on seed, name and size alone, on every machine and version."""

    def __init__(self, name: str, rows: int, seed: int, shuffle: bool) -> None:
        self._rows, self._shuffle = rows, shuffle
        self._entropy = (seed % 2**64, zlib.crc32(name.encode()))
        self._epoch = -1
        self._order: NDArray[np.uint32] = np.empty(0, np.uint32)

    def row(self, epoch: int, position: int) -> int:
        """The row at `position` (0 to rows - 1) of an epoch; the first call of an epoch sorts all rows."""
        if not self._shuffle:
            return position
        if epoch != self._epoch:
            self._order, self._epoch = self._permute(epoch), epoch
        return int(self._order[position])

    def _permute(self, epoch: int) -> NDArray[np.uint32]:
        # numpy promises that the raw output of its bit generators never changes; for permutation() it does not
        keys = np.random.PCG64(np.random.SeedSequence([*self._entropy, epoch])).random_raw(self._rows)
        return np.argsort(keys, kind="stable").astype(np.uint32)
