"""The scored attempts of a group -> the GroupReady by which the trainer plans."""

import math
from collections.abc import Sequence
from numbers import Real

from shared.messages import Attempt, GroupReady


def describe(group: Sequence[Attempt]) -> GroupReady:
    """Lengths count prompt and response tokens; versions are those that sampled a token of any attempt."""
    first = group[0]
    versions = _versions(group) or {first.pinned_version or 0}
    rewards = [attempt.reward for attempt in group if attempt.reward is not None]
    assert len(rewards) == len(group), "every stored attempt was scored"
    return GroupReady(
        group_id=first.group_id,
        kind=first.kind,
        dataset=first.dataset,
        row=first.row,
        lengths=[len(attempt.prompt_ids) + attempt.tokens for attempt in group],
        rewards=rewards,
        oldest_version=min(versions),
        newest_version=max(versions),
        pinned_version=first.pinned_version,
        priority=_priority(first),
    )


def is_off_version(group: Sequence[Attempt]) -> bool:
    """True for an evaluation group with a token that another version than the pinned one sampled."""
    pinned = group[0].pinned_version
    return pinned is not None and bool(_versions(group) - {pinned})


def _priority(attempt: Attempt) -> float:
    """`priority` of the row's metadata; 0 for a row without one, or with one that is no number."""
    given = attempt.metadata.get("priority", 0.0)
    return float(given) if isinstance(given, Real) and math.isfinite(given) else 0.0


def _versions(group: Sequence[Attempt]) -> set[int]:
    return {version for attempt in group for version, count in attempt.weight_versions if count}
