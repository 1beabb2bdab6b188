"""The scored attempts of a group -> the GroupReady by which the trainer plans."""

import math
from numbers import Real

from shared.messages import GroupReady, Rollout


def describe(group: list[Rollout]) -> GroupReady:
    """Lengths count prompt and response tokens; versions are those that sampled a token of any attempt."""
    first = group[0]
    versions = _versions(group) or {first.pinned_version or 0}
    rewards = [rollout.reward for rollout in group if rollout.reward is not None]
    assert len(rewards) == len(group), "every stored attempt was scored"
    return GroupReady(
        group_id=first.group_id,
        kind=first.kind,
        dataset=first.dataset,
        row=first.row,
        lengths=[len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in group],
        rewards=rewards,
        oldest_version=min(versions),
        newest_version=max(versions),
        pinned_version=first.pinned_version,
        priority=_priority(first),
    )


def is_off_version(group: list[Rollout]) -> bool:
    """True for an evaluation group with a token that another version than the pinned one sampled."""
    pinned = group[0].pinned_version
    return pinned is not None and bool(_versions(group) - {pinned})


def _priority(rollout: Rollout) -> float:
    """`priority` of the row's metadata; 0 for a row without one, or with one that is no number."""
    given = rollout.metadata.get("priority", 0.0)
    return float(given) if isinstance(given, Real) and math.isfinite(given) else 0.0


def _versions(group: list[Rollout]) -> set[int]:
    return {version for rollout in group for version, count in rollout.weight_versions if count}
