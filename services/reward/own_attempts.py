"""Attempts that this worker scored and stored itself -> whole groups, without reading them back from Redis."""

from shared.messages import Rollout
from shared.scripts import Joined

MOST_TOKENS = 4 * 2**20
"""Tokens of the attempts that are remembered: 8 bytes each, and their text."""


class OwnAttempts:
    """Remembers what is stored until its group is complete, and no more than MOST_TOKENS of it, newest first.

    An attempt counts as stored only if Redis said that this worker's copy is the one that it keeps.
    """

    def __init__(self) -> None:
        self._scored: dict[int, tuple[bytes, Rollout]] = {}
        self._stored: dict[int, dict[int, Rollout]] = {}
        self._tokens = 0

    def scored(self, payload: bytes, rollout: Rollout) -> None:
        """An attempt that is about to be joined; copies of it are told apart by this very object of bytes."""
        self._scored[id(payload)] = payload, rollout
        self._tokens += len(rollout.token_ids)
        while self._tokens > MOST_TOKENS and self._stored:
            self._leave(next(iter(self._stored)))
        while self._tokens > MOST_TOKENS and self._scored:
            self._forget(self._scored.pop(next(iter(self._scored)))[1])

    def joined(self, payload: bytes, answer: Joined) -> None:
        """What Redis said of an attempt."""
        _, rollout = self._scored.pop(id(payload), (b"", None))
        if rollout is None:
            return
        if answer.stored and answer.state in ("incomplete", "complete"):
            self._stored.setdefault(rollout.group_id, {})[rollout.attempt] = rollout
            return
        self._forget(rollout)
        if answer.state in ("settled", "dead"):
            self._leave(rollout.group_id)

    def whole(self, group_id: int) -> list[Rollout] | None:
        """All attempts of a complete group, in order, if they are this worker's; they are forgotten."""
        stored = self._stored.get(group_id, {})
        group = [stored[number] for number in sorted(stored)]
        self._leave(group_id)
        return group if group and len(group) == group[0].group_size else None

    def _leave(self, group_id: int) -> None:
        for rollout in self._stored.pop(group_id, {}).values():
            self._forget(rollout)

    def _forget(self, rollout: Rollout) -> None:
        self._tokens -= len(rollout.token_ids)
