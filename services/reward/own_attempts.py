"""Attempts that this worker scored and stored itself -> whole groups, without reading them back from Redis."""

from shared.joining import Joined
from shared.messages import Attempt

MOST_TOKENS = 4 * 2**20
"""Tokens of the attempts that are remembered, which says how long their texts are."""


class OwnAttempts:
    """Remembers what is stored until its group is complete, and no more than MOST_TOKENS of it, newest first.

    An attempt counts as stored only if Redis said that this worker's copy is the one that it keeps.
    """

    def __init__(self) -> None:
        self._stored: dict[int, dict[int, Attempt]] = {}
        self._tokens = 0

    def joined(self, attempt: Attempt, answer: Joined) -> None:
        """What Redis said of an attempt."""
        if answer.state in ("settled", "dead"):
            self._leave(attempt.group_id)
        elif answer.stored:
            self._stored.setdefault(attempt.group_id, {})[attempt.attempt] = attempt
            self._tokens += attempt.tokens
            while self._tokens > MOST_TOKENS:
                self._leave(next(iter(self._stored)))

    def whole(self, group_id: int) -> list[Attempt] | None:
        """All attempts of a complete group, in order, if they are this worker's; they are forgotten."""
        stored = self._stored.get(group_id, {})
        group = [stored[number] for number in sorted(stored)]
        self._leave(group_id)
        return group if group and len(group) == group[0].group_size else None

    def _leave(self, group_id: int) -> None:
        for attempt in self._stored.pop(group_id, {}).values():
            self._tokens -= attempt.tokens
