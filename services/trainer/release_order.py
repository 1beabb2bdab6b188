"""The bitmaps of a run -> the groups that are neither trained nor dropped, in the order of their release.

Steps that train in this order never train a token that is older than max_staleness (eta) versions. Let B be the groups
of a step, and let step s start from version v = s - 1, so that vB groups were trained before it. Take a group g of step
s, and let u be the version that was served when g was released.

1. Every group that was trained before step s has a smaller id than g: it was among the B first undecided ones when g
   was still undecided, or not released yet, and was not among them.
2. When g was released, the groups released up to it were therefore at least vB, g itself, and those with smaller ids
   that are dropped by now; of the latter at least as many are dropped by now as were then, since all that was dropped
   before g's release has a smaller id than g. So at that time: released - dropped >= vB + 1.
3. Admission let g pass: released - dropped <= (u + eta + 1) * B (shared.admission; `wait` goes without over-sampling).

So vB + 1 <= (u + eta + 1) * B, hence u > v - eta - 1, and u >= v - eta as both are whole numbers. The tokens of g were
sampled after its release, by version u or a newer one: none is older than v - eta. Nothing waits for ever, since
admission at version v has room for the (v + 1) * B groups that the steps up to this one train.

Groups that a person sends again from the dead letters are the exception: their slots went to other groups long ago.
"""

from collections.abc import Collection
from typing import cast

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from shared.topology import Keys


class ReleaseOrder:
    """Where one run stands in the order of release. Evaluation groups have ids of the same row and are passed over."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._first_byte = 0
        """All groups whose bits lie before this byte are decided."""

    def restart(self) -> None:
        """Look at all groups again: Redis may have lost decisions."""
        self._first_byte = 0

    async def next(self, ready: Collection[int], count: int) -> list[int] | None:
        """The first `count` undecided groups; None while one of them is not ready, or fewer are released."""
        sent_again = sorted(group_id for group_id in ready if group_id < 8 * self._first_byte)
        due = (sent_again + await self._undecided())[:count]
        return due if len(due) == count and set(due) <= set(ready) else None

    async def _undecided(self) -> list[int]:
        keys, begin = self._keys, self._first_byte
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.counters, "next_group_id")
            for bitmap in (keys.trained, keys.dropped, keys.eval_groups):
                pipe.getrange(bitmap, begin, -1)
            released, *bitmaps = cast(list[bytes | None], await pipe.execute())
        size = max(int(released or 0) - 8 * begin, 0)
        decided = np.zeros(size, bool)
        for bitmap in bitmaps:
            bits = _bits(bitmap or b"")[:size]
            decided[: len(bits)] |= bits
        undecided = 8 * begin + np.flatnonzero(~decided)
        self._first_byte = (int(undecided[0]) if len(undecided) else 8 * begin + size) // 8
        return [int(group_id) for group_id in undecided]


def _bits(data: bytes) -> NDArray[np.bool_]:
    """Redis' bit 0 is the highest one of the first byte."""
    return np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool)
