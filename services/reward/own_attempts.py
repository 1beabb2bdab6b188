"""Attempts that this worker scored and stored itself -> whole groups, without reading them back from Redis."""

from shared.joining import Joined, ScoredAttempt
from shared.messages import Attempt

Forwarded = tuple[int, bytes]
"""A group and the name of its forward: if Redis loses the group, it is generated anew, and these are other attempts."""

MOST_TOKENS = 4 * 2**20
"""Tokens of the attempts that are remembered, which says how long their texts are."""


class OwnAttempts:
    """Remembers what is stored until its group is complete, and no more than MOST_TOKENS of it, newest first.

    An attempt counts as stored only if Redis said that this worker's copy is the one that it keeps.
    """

    def __init__(self) -> None:
        self._stored: dict[Forwarded, dict[int, Attempt]] = {}
        self._tokens = 0

    def joined(self, scored: ScoredAttempt, answer: Joined) -> None:
        """What Redis said of an attempt."""
        attempt, group = scored.attempt, _group_of(scored)
        if answer.state in ("settled", "dead"):
            self._leave(group)
        elif answer.stored:
            self._stored.setdefault(group, {})[attempt.attempt] = attempt
            self._tokens += attempt.tokens
            while self._tokens > MOST_TOKENS:
                self._leave(next(iter(self._stored)))

    def whole(self, last: ScoredAttempt) -> list[Attempt] | None:
        """All attempts of the group that this one completed, in order, if they are ours; they are forgotten."""
        group = _group_of(last)
        stored = self._stored.get(group, {})
        attempts = [stored[number] for number in sorted(stored)]
        self._leave(group)
        return attempts if len(attempts) == last.attempt.group_size else None

    def _leave(self, group: Forwarded) -> None:
        for attempt in self._stored.pop(group, {}).values():
            self._tokens -= attempt.tokens


def _group_of(scored: ScoredAttempt) -> Forwarded:
    return scored.attempt.group_id, scored.forward
