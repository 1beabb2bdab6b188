"""A recorded step -> which attempts each rank fetches and trains, in each of the step's optimizer updates."""

import heapq
from dataclasses import dataclass
from itertools import pairwise

from services.trainer.ranks import Ranks
from shared.errors import RunRejected
from shared.messages import StepIntent
from shared.run_settings import RunSettings

Attempts = dict[int, list[int] | None]
"""Group id -> the attempts of it that a rank trains, ascending; None for all."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank trains of a step; the groups of a step are cut into its updates in their order."""

    updates: list[Attempts]

    @property
    def attempts(self) -> Attempts:
        """Of all updates together; no group is in two."""
        return {group: attempts for update in self.updates for group, attempts in update.items()}


def share_of(settings: RunSettings, intent: StepIntent, ranks: Ranks) -> Share:
    """What this rank trains of a step; the same rule on every rank."""
    return share_step(intent, ranks.size, settings.trainer.updates_per_step, settings.kind == "dpo")[ranks.rank]


def share_step(intent: StepIntent, ranks: int, updates: int, together: bool = False) -> list[Share]:
    """The same shares on every rank, and again when the step is trained again.

    Within an update the longest attempts go first, each to the rank with the fewest tokens so far (longest
    processing time first; Graham 1969, "Bounds on multiprocessing timing anomalies", theorem 2).

    Args:
        together: the attempts of a group stay on one rank.

    Raises:
        RunRejected: the step was recorded without lengths, by a trainer that knew no ranks.
    """
    cuts = cut(intent.group_ids, updates)
    if ranks == 1:
        return [Share([dict.fromkeys(groups) for groups in cuts])]
    if len(intent.lengths) != len(intent.group_ids):
        raise RunRejected(
            f"step {intent.step} was recorded without the lengths of its attempts, so that several ranks cannot share"
            " it; write trainer.processes = 1 in the deployment until the run is past that step"
        )
    lengths = dict(zip(intent.group_ids, intent.lengths, strict=True))
    spread = [_spread({group: lengths[group] for group in groups}, ranks, together) for groups in cuts]
    return [Share([update[rank] for update in spread]) for rank in range(ranks)]


def cut(group_ids: list[int], updates: int) -> list[list[int]]:
    """The groups of each update, in order; their numbers differ by one at most."""
    bounds = [len(group_ids) * update // updates for update in range(updates + 1)]
    return [group_ids[start:end] for start, end in pairwise(bounds)]


def _spread(lengths: dict[int, list[int]], ranks: int, together: bool) -> list[Attempts]:
    """Units (attempts, or groups) to ranks."""
    units = [
        (sum(row[index] for index in indices), group, indices)
        for group, row in lengths.items()
        for indices in ([list(range(len(row)))] if together else [[index] for index in range(len(row))])
    ]
    units.sort(key=lambda unit: -unit[0])
    tokens = [(0, rank) for rank in range(ranks)]
    taken: list[dict[int, list[int]]] = [{} for _ in range(ranks)]
    for length, group, indices in units:
        filled, rank = heapq.heappop(tokens)
        taken[rank].setdefault(group, []).extend(indices)
        heapq.heappush(tokens, (filled + length, rank))
    return [{group: sorted(own[group]) for group in lengths if group in own} for own in taken]
