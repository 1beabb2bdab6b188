"""A complete, scored group -> None to train it, or the reason why it is dropped."""

import statistics
from collections.abc import Callable
from typing import Any

from shared.errors import PluginError
from shared.messages import Rollout
from shared.plugins import load_function

GroupFilter = Callable[[list[Rollout]], str | None]
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
    return _from_plugin(setting, load_function(setting, ("rollouts",), EXAMPLE, is_async=False))


def keep_all(rollouts: list[Rollout]) -> str | None:
    return None


def nonzero_std(rollouts: list[Rollout]) -> str | None:
    """Equal rewards have zero advantage and teach nothing (Yu et al. 2025, DAPO, section 3.2)."""
    rewards = [rollout.reward or 0.0 for rollout in rollouts]
    return "zero_std" if len(rewards) > 1 and statistics.pstdev(rewards) <= SAME else None


def _from_plugin(path: str, keep: Callable[..., Any]) -> GroupFilter:
    def verdict(rollouts: list[Rollout]) -> str | None:
        answer = keep(rollouts)
        if isinstance(answer, str):
            return answer[:LONGEST_REASON] or "filtered"
        if not isinstance(answer, bool):
            raise PluginError(
                f"{path} returned a {type(answer).__name__}; return True to keep a group, False or a reason to drop it"
            )
        return None if answer else "filtered"

    return verdict
