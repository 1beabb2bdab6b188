"""Attempts with their scores -> what the join script stores, and what it answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgpack

from shared.accounts import margins
from shared.messages import Attempt, Codec, Rollout
from shared.rollout_parts import arrays_of

JoinState = Literal["incomplete", "complete", "settled", "dead", "foreign"]
"""settled: the group was decided before, and the attempt is not needed; dead: it is kept for a re-drive; foreign: the
arrays in Redis are not those of this attempt, so neither is its score."""
_STATES: tuple[JoinState, ...] = ("incomplete", "complete", "settled", "dead", "foreign")
_STORED = 8
TRIP_BYTES = 2**19


@dataclass(frozen=True, slots=True, eq=False)
class ScoredAttempt:
    """An attempt that is to be stored with its score.

    One that is an entry of the stream of attempts names it: Redis puts the two together itself.
    """

    attempt: Attempt
    """The reward included."""
    forward: bytes
    """Name of the forward that put its arrays into Redis."""
    encoded: bytes
    """The attempt, or with an entry the bytes with which its payload is to end."""
    entry_id: str = ""
    replaces: int = 0
    """How many bytes of the entry's payload `encoded` replaces."""
    arrays: bytes | None = None
    """The arrays, if they are not in Redis yet."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of an attempt; `stored` is False if a copy was there before, or if its group is settled."""

    state: JoinState
    stored: bool

    @classmethod
    def read(cls, answer: int) -> "Joined":
        return cls(_STATES[answer % _STORED], answer >= _STORED)


def complete(rollout: Rollout) -> ScoredAttempt:
    """A scored rollout of which nothing is in Redis; WireError if it is too large to travel."""
    codec: Codec[Attempt] = Codec(Attempt)
    return ScoredAttempt(rollout, b"with its attempt", codec.encode(rollout), arrays=arrays_of(rollout))


def pack(attempts: Sequence[ScoredAttempt], places: Mapping[int, int], accounted: bool) -> bytes:
    """The argument of the join script; `places` says where the keys of each group begin."""
    items = [_item(one, places, accounted) for one in attempts]
    return cast(bytes, msgpack.packb(items, use_bin_type=False))  # Redis' cmsgpack reads no bin types


def by_size(attempts: Sequence[ScoredAttempt]) -> Iterator[list[ScoredAttempt]]:
    """Parts that take about TRIP_BYTES: the time to send one grows with the square of its size."""
    part: list[ScoredAttempt] = []
    size = 0
    for one in attempts:
        part.append(one)
        size += len(one.encoded) + len(one.arrays or b"")
        if size >= TRIP_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _item(one: ScoredAttempt, places: Mapping[int, int], accounted: bool) -> list[Any]:
    attempt = one.attempt
    tokens = [part for pair in margins(attempt).items() for part in pair] if accounted else []
    item: list[Any] = [places[attempt.group_id], attempt.group_id, attempt.group_size, attempt.attempt]
    item += [one.forward, tokens, one.encoded, one.entry_id, one.replaces]
    return item if one.arrays is None else [*item, one.arrays]
