"""A complete, scored group -> None to train it, or the reason why it is dropped."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from shared.errors import PluginError
from shared.messages import Attempt
from shared.plugins import load_function

GroupFilter = Callable[[Sequence[Attempt]], str | None]
SAME = 1e-6
"""Rewards whose standard deviation is at most this are equal."""
LONGEST_REASON = 64
"""Reasons are names of counters."""
EXAMPLE = "def keep(rollouts: list[Rollout]) -> bool | str"


def build_filter(setting: str) -> GroupFilter:
    """The filter that `reward.group_filter` names; PluginError if it does not load."""
    if setting in ("", "keep_all"):
        return keep_all
    if setting == "nonzero_std":
        return nonzero_std
    if ":" not in setting:
        raise PluginError(
            f"reward.group_filter is {setting!r}; write keep_all, nonzero_std or module:function of a filter"
        )
    return RolloutFilter(setting, load_function(setting, ("rollouts",), EXAMPLE, is_async=False))


def keep_all(attempts: Sequence[Attempt]) -> str | None:
    return None


def nonzero_std(attempts: Sequence[Attempt]) -> str | None:
    """Equal rewards have zero advantage and teach nothing (Yu et al. 2025, DAPO, section 3.2)."""
    rewards = [attempt.reward or 0.0 for attempt in attempts]
    return "zero_std" if len(rewards) > 1 and statistics.pstdev(rewards) <= SAME else None


class RolloutFilter:
    """A filter of a user, who may read tokens: it is called with complete Rollouts."""

    def __init__(self, path: str, keep: Callable[..., Any]) -> None:
        self._path, self._keep = path, keep

    def __call__(self, rollouts: Sequence[Attempt]) -> str | None:
        answer = self._keep(rollouts)
        if isinstance(answer, str):
            return answer[:LONGEST_REASON] or "filtered"
        if not isinstance(answer, bool):
            found = type(answer).__name__
            raise PluginError(
                f"{self._path} returned a {found}; return True to keep a group, False or a reason to drop it"
            )
        return None if answer else "filtered"
