"""A run's keys in Redis -> one moment of its ledger: counters, accounts and a bit a group, read in one transaction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from shared.topology import Keys

Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment. Each bitmap has one entry a group."""

    groups: int
    """How many ids were given out; they are 0 to groups - 1."""
    counters: dict[str, int]
    accounts: dict[str, int]
    emitted: Bits
    trained: Bits
    dropped: Bits
    evaluated: Bits
    dead: frozenset[int]
    """Groups that were dropped as dead and whose attempts are kept."""
    strays: dict[str, int]
    """Bitmap -> bits that are set beyond the last id."""

    @property
    def decided(self) -> Bits:
        return self.trained | self.dropped | self.evaluated

    @property
    def ready(self) -> Bits:
        """Complete, kept, and in no step yet."""
        return self.emitted & ~self.decided

    @property
    def unsettled(self) -> Bits:
        return ~self.emitted & ~self.decided

    def count(self, counter: str) -> int:
        return self.counters.get(counter, 0)

    def reasons(self) -> dict[str, int]:
        """Drops by reason, of training and evaluation groups together."""
        found: dict[str, int] = {}
        for name, count in self.counters.items():
            kind, colon, reason = name.partition(":")
            if colon and kind in ("dropped", "eval_dropped"):
                found[reason] = found.get(reason, 0) + count
        return {reason: count for reason, count in sorted(found.items()) if count}


async def take_snapshot(redis: Redis, keys: Keys) -> Snapshot:
    """A million groups are four bitmaps of 125 kB."""
    names = {"emitted": keys.emitted, "trained": keys.trained, "dropped": keys.dropped, "evaluated": keys.evaluated}
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.counters)
        pipe.hgetall(keys.accounts)
        pipe.smembers(keys.dead_groups)
        for key in names.values():
            pipe.get(key)
        counters, accounts, dead, *bitmaps = await pipe.execute()
    counts = numbers(counters)
    groups = counts.get("next_group_id", 0)
    raw = {name: _unpack(bitmap) for name, bitmap in zip(names, bitmaps, strict=True)}
    return Snapshot(
        groups=groups,
        counters=counts,
        accounts=numbers(accounts),
        dead=frozenset(int(group_id) for group_id in dead),
        strays={name: int(bits[groups:].sum()) for name, bits in raw.items()},
        **{name: _fit(bits, groups) for name, bits in raw.items()},
    )


def numbers(raw: dict[bytes, bytes]) -> dict[str, int]:
    """A hash of counts."""
    return {name.decode(): int(float(value)) for name, value in raw.items()}


def ids(bits: Bits) -> list[int]:
    """The ids whose bit is set."""
    return np.flatnonzero(bits).tolist()


def _unpack(bitmap: bytes | None) -> Bits:
    return np.unpackbits(np.frombuffer(bitmap or b"", np.uint8)).astype(np.bool_)


def _fit(bits: Bits, groups: int) -> Bits:
    fitted = np.zeros(groups, np.bool_)
    fitted[: min(groups, len(bits))] = bits[:groups]
    return fitted
