"""The rollbacks of a run -> which steps the weights after a step come from, and which of them could be had again.

A step usually starts from the weights of the step before. A rollback is a step that trains nothing and starts from an
older version: the state after it is the state after that version's step. So every step has one parent, and the steps
that a rollback went back behind are a branch that ends there.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from redis.asyncio import Redis

from shared.topology import Keys


@dataclass(frozen=True, slots=True)
class Lineage:
    """Parents of the steps of one run."""

    rollbacks: Mapping[int, int] = field(default_factory=dict[int, int])
    """Step -> the version that it went back to."""

    def parent(self, step: int) -> int:
        """The version that a step starts from."""
        return self.rollbacks.get(step, step - 1)

    def spans(self, step: int) -> Iterator[range]:
        """The steps that the state after `step` comes from, and itself: runs of numbers in a row, newest first."""
        while (begin := self._newest_rollback(step)) is not None:
            yield range(begin, step + 1)
            step = self.rollbacks[begin]
        yield range(step + 1)

    def includes(self, step: int, ancestor: int) -> bool:
        """Whether the state after `step` comes from the state after `ancestor`."""
        return any(ancestor in span for span in self.spans(step))

    def way(self, after: int, step: int) -> list[int]:
        """The steps from the state after `after`, which `step` comes from, to the state after `step`, in order."""
        return sorted(one for span in self.spans(step) for one in span if one > after)

    def left_at(self, newest: int, step: int) -> int | None:
        """The rollback that went back behind a step; None if the state after `newest` comes from it."""
        left = None
        for rollback in sorted(one for one in self.rollbacks if step < one <= newest):
            if self.includes(rollback, step):
                left = None
            elif left is None:
                left = rollback
        return left

    def _newest_rollback(self, step: int) -> int | None:
        return max((one for one in self.rollbacks if one <= step), default=None)


async def read_lineage(redis: Redis, keys: Keys) -> Lineage:
    raw = cast(dict[bytes, bytes], await redis.hgetall(keys.rollbacks))
    return Lineage({int(step): int(version) for step, version in raw.items()})


def available(
    lineage: Lineage, first: int, newest: int, states: Collection[int], has_groups: Callable[[int], bool]
) -> set[int]:
    """The versions from `first` to `newest` whose state can be had: it is kept, or can be trained again.

    Args:
        states: versions whose whole state is kept: checkpoints, and the initial model.
        has_groups: whether all that a step trained is still there.
    """
    found = set[int]()
    for version in range(first, newest + 1):
        trainable = version in lineage.rollbacks or has_groups(version)
        if version in states or (trainable and lineage.parent(version) in found):
            found.add(version)
    return found


def spans(versions: Collection[int]) -> list[tuple[int, int]]:
    """Numbers -> the first and last of those in a row: [0, 6, 7, 8] -> [(0, 0), (6, 8)]."""
    found: list[tuple[int, int]] = []
    for version in sorted(versions):
        begins = not found or found[-1][1] != version - 1
        found.append((version, version) if begins else (found.pop()[0], version))
    return found


def spans_in_words(found: Sequence[tuple[int, int]]) -> str:
    """`0, 6 to 8`."""
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in found) or "none"


def in_words(versions: Collection[int]) -> str:
    """Numbers as spans: [0, 6, 7, 8] -> `0, 6 to 8`."""
    return spans_in_words(spans(versions))


def why_gone(version: int, can: Collection[int]) -> str:
    """What a person is told who wants a version that is not among those that can be had."""
    return (
        f"version {version} cannot be had any more: no checkpoint at or before it is kept from which the steps up to it"
        f" could be trained again; those that can be had: {in_words(can)} (trainer.keep_checkpoints and trainer.archive"
        " of a run say how many that are)"
    )
