"""What requests and engines did during the updates -> the numbers, and what is wrong with them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.churn.load import Gap, Load

TOLERANCE = 1e-4


@dataclass
class Update:
    """One published version; times of the monotonic clock."""

    version: int
    start: float
    end: float
    seconds: float
    """Until the publisher was through with it, without the hashing."""
    done: int
    failed: dict[str, str]
    struck: bool = False
    """An engine was struck at this update or one of the two before."""


@dataclass
class Found:
    """What is judged."""

    mode: str
    updates: list[Update]
    load: Load
    differences: NDArray[np.float64]
    """Of every token's log-probability, from its recomputation."""
    deadline_s: float
    ends: dict[str, str] = field(default_factory=dict[str, str])
    """Living engine -> the version that it serves at the end."""
    unequal: list[str] = field(default_factory=list[str])
    """Living engines whose hashes differ from the publisher's."""
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    """How often the worker's path and the publisher warned of what."""


def judge(found: Found) -> dict[str, Any]:
    """The verdict as JSON."""
    late = [update.version for update in found.updates if update.seconds > found.deadline_s]
    newest = str(found.updates[-1].version)
    behind = {engine: version for engine, version in found.ends.items() if version != newest}
    wrong = int(np.sum(found.differences > TOLERANCE))
    problems = [
        *(f"a request failed: {reason}" for reason in found.load.failures),
        *(f"version {version} took longer than its deadline" for version in late),
        *(f"{engine} ends with version {version}, not {newest}" for engine, version in behind.items()),
        *(f"{engine} does not have the hashes of version {newest}" for engine in found.unequal),
    ]
    if wrong and found.mode != "in_place":
        problems.append(f"{wrong} tokens do not have the probability of the version that their span names")
    baseline = np.array([gap.seconds for gap in found.load.gaps if not _is_in(gap, found.updates)])
    return {
        "groups": len(found.load.rollouts) // 2,
        "tokens": int(found.differences.size),
        "requests_failed": len(found.load.failures),
        "updates_late": len(late),
        "update_p50_s": _quantile([update.seconds for update in found.updates], 0.5),
        "update_max_s": max(update.seconds for update in found.updates),
        "engines_failed": sum(len(update.failed) for update in found.updates),
        "tokens_wrong": wrong,
        "largest_difference": float(found.differences.max(initial=0)),
        "gap_p50_s": _quantile(baseline, 0.5),
        "gap_p99_s": _quantile(baseline, 0.99),
        **_pauses("pause", found.load.gaps, found.updates),
        **_pauses("quiet_pause", found.load.gaps, [update for update in found.updates if not update.struck]),
        "warnings": found.warnings,
        "problems": problems,
        "perfect": not problems,
    }


def _pauses(name: str, gaps: list[Gap], updates: list[Update]) -> dict[str, float]:
    """The longest silence of each stream around each update that it was open in."""
    longest: dict[tuple[int, int], float] = {}
    for gap in gaps:
        for update in (update for update in updates if _is_in(gap, [update])):
            key = (gap.stream, update.version)
            longest[key] = max(gap.seconds, longest.get(key, 0.0))
    seen = list(longest.values())
    return {f"{name}s": len(seen), f"{name}_p50_s": _quantile(seen, 0.5), f"{name}_p99_s": _quantile(seen, 0.99)}


def _is_in(gap: Gap, updates: list[Update]) -> bool:
    return any(gap.start < update.end and update.start < gap.end for update in updates)


def _quantile(values: "list[float] | NDArray[np.float64]", share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")
