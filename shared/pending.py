"""Entries whose consumer fell silent -> what this consumer takes over now, what it gives up, what has to wait."""

from collections.abc import Sequence
from dataclasses import dataclass, field

LET_GO = "~let-go"
"""The consumer to whom an entry goes when a live worker lets go of it: nobody died of it."""
SUSPECT_DELIVERIES = 2
"""An entry that was in flight in this many workers that fell silent may be what kills them."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An unacknowledged entry: who had it last, and how often it was delivered."""

    entry_id: str
    consumer: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the entries of silent consumers."""

    give_up: list[Pending] = field(default_factory=list[Pending])
    """Delivered too often: to the dead letters."""
    suspects: list[Pending] = field(default_factory=list[Pending])
    """To be taken one at a time, by a consumer that holds nothing else, so that they take no innocent entry along."""
    others: list[Pending] = field(default_factory=list[Pending])
    """To be taken like new ones, while no suspect waits."""


def choose(silent: Sequence[Pending], max_deliveries: int) -> Choice:
    """Sort the entries of silent consumers, oldest first in each class."""
    choice, threshold = Choice(), max(1, min(SUSPECT_DELIVERIES, max_deliveries - 1))
    for entry in silent:
        if entry.deliveries >= max_deliveries:
            choice.give_up.append(entry)
        elif entry.deliveries >= threshold and entry.consumer != LET_GO:
            choice.suspects.append(entry)
        else:
            choice.others.append(entry)
    return choice
