"""The trace of a run -> its throughput, idle time and staleness, and how trained lengths differ from generated ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.long_tail import LongTail
from benchmarks.run_trace import RunTrace
from shared.run_settings import RunSettings

DECILES = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """Speeds and staleness of the middle half of the steps; lengths of the groups released in the first half."""

    steps_per_hour: float
    engines_idle: float
    """Share of the workers' time."""
    trainer_idle: float
    """Share of the trainer's time that it waited for groups."""
    staleness_mean: float
    """Over trained groups, each by its oldest token."""
    token_staleness_mean: float
    staleness_max: int
    """Over all steps."""
    beyond: float
    """Share of the trained groups, over all steps, that were older than max_staleness."""
    trained: float
    """Share of the groups, of those released in the first half."""
    generated_length: float
    """Mean tokens of an attempt."""
    trained_length: float
    trained_by_length: list[float]
    """Share that was trained of each tenth of the groups, the shortest first, by their longest attempts."""
    distance: float
    """Kolmogorov-Smirnov, between the lengths of trained and of generated attempts."""

    @property
    def length_bias(self) -> float:
        return self.trained_length / self.generated_length - 1


def measure(trace: RunTrace, settings: RunSettings, tail: LongTail, workers: int) -> Measured:
    steps = len(trace.steps)
    first, last = trace.steps[steps // 4], trace.steps[3 * steps // 4]
    middle = trace.steps[steps // 4 + 1 : 3 * steps // 4 + 1]
    seconds = last.ended - first.ended
    busy = sum(max(0.0, min(work.ended, last.ended) - max(work.begun, first.ended)) for work in trace.work)
    everything = [staleness for step in trace.steps for staleness in step.staleness]
    cohort = [group for group, version in enumerate(trace.released_at) if version < steps // 2]
    trained = {group for step in trace.steps for group in step.group_ids}
    lengths = np.array([tail.lengths(group, settings.rollout.group_size) for group in cohort])
    is_trained = np.array([group in trained for group in cohort])
    return Measured(
        steps_per_hour=3600 * len(middle) / seconds,
        engines_idle=max(0.0, 1 - busy / (workers * seconds)),
        trainer_idle=sum(step.waited_s for step in middle) / seconds,
        staleness_mean=float(np.mean([staleness for step in middle for staleness in step.staleness])),
        token_staleness_mean=float(np.mean([step.token_staleness for step in middle])),
        staleness_max=max(everything),
        beyond=float(np.mean(np.array(everything) > settings.rollout.max_staleness)),
        trained=float(is_trained.mean()),
        generated_length=float(lengths.mean()),
        trained_length=float(lengths[is_trained].mean()),
        trained_by_length=_trained_by_length(lengths.max(axis=1), is_trained),
        distance=distance(lengths[is_trained].ravel(), lengths.ravel()),
    )


def distance(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """The largest difference between two empirical distribution functions (Kolmogorov-Smirnov)."""
    points = np.unique(np.concatenate([some, others]))
    below_some = np.searchsorted(np.sort(some), points, side="right") / len(some)
    below_others = np.searchsorted(np.sort(others), points, side="right") / len(others)
    return float(np.abs(below_some - below_others).max())


def _trained_by_length(longest: NDArray[np.int64], is_trained: NDArray[np.bool_]) -> list[float]:
    tenths: Sequence[NDArray[np.int64]] = np.array_split(np.argsort(longest, kind="stable"), DECILES)
    return [float(is_trained[tenth].mean()) for tenth in tenths]
