"""One moment of the ledger and its recorded steps -> what does not fit: bitmaps, records, counters, admission."""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from services.gateway.ledger.read_records import Records
from services.gateway.ledger.take_snapshot import Bits, Snapshot, ids
from shared.admission import admission_limit
from shared.run_settings import RunSettings

NAMED = 20
"""Groups that one sentence or list of sentences names."""


@dataclass(slots=True)
class Verdict:
    """What was proven, and what is wrong."""

    problems: list[str] = field(default_factory=list[str])
    checks: list[str] = field(default_factory=list[str])
    twice: set[int] = field(default_factory=set[int])
    """Groups in two states that exclude each other."""

    @contextmanager
    def proves(self, sentence: str) -> Generator[None]:
        """The sentence is told as proven unless what is done meanwhile finds a problem."""
        before = len(self.problems)
        yield
        if len(self.problems) == before:
            self.checks.append(sentence)

    def expect(self, condition: bool, sentence: str) -> None:
        if not condition:
            self.problems.append(sentence)


def named(group_ids: Iterable[int]) -> str:
    """`group 7`, `groups 7, 9`, or the first ones and how many more."""
    found = sorted(group_ids)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"group{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:NAMED]))}{more}"


def check_states(now: Snapshot, records: Records, verdict: Verdict) -> None:
    """No group is in two states that exclude each other, and no id is decided that was never given out."""
    states: dict[str, Bits] = {"trained": now.trained, "dropped": now.dropped, "evaluated": now.evaluated}
    for (one, first), (other, second) in combinations(states.items(), 2):
        _twice(ids(first & second), f"both {one} and {other}", verdict)
    for name, bits in states.items():
        _twice(ids(bits & ~now.emitted), f"{name} but not marked as settled", verdict)
    takers = Counter(group_id for groups in records.up_to(now.count("intended")).values() for group_id in groups)
    _twice([group_id for group_id, times in takers.items() if times > 1], "trained by two steps", verdict)
    for name, count in now.strays.items():
        verdict.expect(not count, f"{count} bits of {name} belong to ids that were never given out")


def check_steps(now: Snapshot, records: Records, first: int, verdict: Verdict) -> None:
    """Steps are recorded and committed once each, and name exactly the groups that are marked as trained.

    `first` is the step that the run begins with: 0, or that of a branch.
    """
    step, intended = now.count("step") or first, now.count("intended") or first
    intents = records.up_to(intended)
    verdict.problems += records.unreadable
    for number in records.repeated:
        verdict.problems.append(f"step {number} was recorded more than once")
    missing = [str(n) for n in range(first + 1, intended + 1) if n not in intents]
    verdict.expect(not missing, f"no groups are recorded for step {', '.join(missing[:NAMED])}")
    wrong = [str(n) for n in range(first + 1, step + 1) if records.commits[n] != 1]
    verdict.expect(not wrong, f"step {', '.join(wrong[:NAMED])} is not committed exactly once")
    verdict.expect(step <= intended, f"step {step} is committed, but groups are recorded up to step {intended} only")
    recorded = {group_id for groups in intents.values() for group_id in groups}
    trained = set(ids(now.trained))
    for groups, what in (
        (trained - recorded, "marked as trained, but in no recorded step"),
        (recorded - trained, "in a recorded step, but not marked as trained"),
    ):
        verdict.expect(not groups, f"{named(groups)}: {what}")


def check_counters(now: Snapshot, records: Records, verdict: Verdict) -> None:
    """Every counter says what the bitmaps say."""
    step = now.count("step")
    in_steps = sum(len(groups) for number, groups in records.up_to(now.count("intended")).items() if number > step)
    others = now.count("inherited") + now.count("rolled_back")  # slots that are taken up, by no group of this run
    ours = now.count("released") + now.count("eval_released") - others
    facts: dict[str, tuple[int, int]] = {
        "groups released, by counter and by id": (ours, now.groups),
        "groups trained and in a step, by counter and by bitmap": (now.count("trained") + in_steps, _sum(now.trained)),
        "groups dropped, by counter and by bitmap": (
            now.count("dropped") + now.count("eval_dropped"),
            _sum(now.dropped),
        ),
        "groups dropped, by counter and by reason": (
            now.count("dropped") + now.count("eval_dropped"),
            sum(now.reasons().values()),
        ),
        "groups evaluated, by counter and by bitmap": (now.count("eval_done"), _sum(now.evaluated)),
    }
    for what, (told, seen) in facts.items():
        verdict.expect(told == seen, f"{what}, differ: {told} and {seen}")
    strange = [group_id for group_id in now.dead if group_id >= now.groups or not now.dropped[group_id]]
    verdict.expect(not strange, f"{named(strange)}: kept as dead, but not dropped")


def excess(now: Snapshot, records: Records, settings: RunSettings) -> int:
    """Groups under way beyond what admission allowed at any version so far; 0 if none.

    A rollback takes up the slots of a step, also where groups were released for all steps that are left.
    """
    size, intended = settings.rollout.groups_per_step, now.count("intended")
    rollbacks = [step for step, groups in records.up_to(intended).items() if not groups]

    def limit(version: int) -> int:
        return admission_limit(settings, version) - size * sum(step <= version for step in rollbacks)

    version = max(now.count("weight_version"), settings.branch.step if settings.branch else 0)
    under_way = now.count("released") - size * len(rollbacks) - now.count("dropped")
    return max(under_way - max(map(limit, range(version + 1))), 0)


def check_lost(lost: Mapping[int, str], verdict: Verdict) -> None:
    """A sentence for each of the first lost groups."""
    first = sorted(lost)[:NAMED]
    verdict.problems += [f"group {group_id} {lost[group_id]}" for group_id in first]
    if len(lost) > len(first):
        verdict.problems.append(f"{len(lost) - len(first)} more groups are lost")


def _twice(group_ids: list[int], what: str, verdict: Verdict) -> None:
    if group_ids:
        verdict.twice.update(group_ids)
        verdict.problems.append(f"{named(group_ids)}: {what}")


def _sum(bits: Bits) -> int:
    return int(np.count_nonzero(bits))
