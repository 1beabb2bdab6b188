"""Recorded steps and their payloads -> what each step trained, and how old it was."""

from dataclasses import dataclass, field

from benchmarks.simulated_engines import Work
from shared.messages import Rollout, StepIntent


@dataclass
class StepTrace:
    """One step, as the ledger and the trained payloads have it."""

    step: int
    group_ids: list[int]
    staleness: list[int]
    """Of each group: the version that the step starts from minus the version of the group's oldest token."""
    token_staleness: float
    """The mean over all trained tokens, each by its own version."""
    begun: float
    """When the trainer was free for this step."""
    waited_s: float
    ended: float = 0.0


@dataclass
class RunTrace:
    """All that happened in a run."""

    steps: list[StepTrace] = field(default_factory=list[StepTrace])
    released_at: list[int] = field(default_factory=list[int])
    """By group id: the served version when the group was released."""
    work: list[Work] = field(default_factory=list[Work])
    most_over_limit: int = -(10**9)
    """The largest `released - dropped - limit` after any release."""


def trace_step(intent: StepIntent, rollouts: list[Rollout], begun: float, waited_s: float) -> StepTrace:
    """What a step trained, from its payloads; `ended` is for later."""
    oldest: dict[int, int] = {}
    behind = tokens = 0
    for rollout in rollouts:
        for version, count in rollout.weight_versions:
            oldest[rollout.group_id] = min(version, oldest.get(rollout.group_id, version))
            behind += (intent.weight_version - version) * count
            tokens += count
    staleness = [intent.weight_version - oldest[group_id] for group_id in intent.group_ids]
    return StepTrace(intent.step, intent.group_ids, staleness, behind / tokens, begun, waited_s)
