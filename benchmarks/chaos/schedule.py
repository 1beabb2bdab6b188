"""A seed -> blows: which service is killed or frozen next, and how long after the one before."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TARGETS = ("redis", "gateway", "router", "reward", "rollout", "sidecar", "engine", "trainer")
"""`engine` is a process of the engine, `sidecar` the service that keeps it; the gateway feeds the run."""
APART = 2
"""A target is hit again only after this many others."""
BURST = (1, 6)
"""Blows between two steps of the run, so that services are away at the same time."""
FREEZE_SHARE = 0.12
FREEZE_S = (1.0, 5.0)
"""A frozen service wakes up after this long: some sleep past their lease and find their work taken over."""

LOSS_SHARE = 0.5
LOST_S = (0.0, 1.0)
"""Half of the deaths of Redis are those of its machine: what was not synced is gone."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One thing that happens to a service."""

    after_s: float
    target: str
    freeze_s: float = 0
    """0 kills (SIGKILL); more stops the process (SIGSTOP) for that many seconds."""
    lost_s: float = 0
    """A killed Redis loses what it wrote in these last seconds, if its file is synced every second only."""
    after_step: bool = False
    """Wait until the run has made a step: blows come in bursts, and between two bursts the run gets somewhere."""


def blows(seed: int, gap_s: tuple[float, float], only: Sequence[str] = ()) -> Iterator[Blow]:
    """Blows without end, the same ones for the same seed; all targets are equally likely."""
    targets = only or TARGETS
    draw, recent = random.Random(seed), deque[str](maxlen=min(APART, len(targets) - 1))
    left = 0
    while True:
        first = left == 0
        left = draw.randint(*BURST) - 1 if first else left - 1
        target = draw.choice([target for target in targets if target not in recent])
        recent.append(target)
        frozen = draw.random() < FREEZE_SHARE
        seconds, lost_s = draw.uniform(*FREEZE_S), draw.uniform(*LOST_S) if draw.random() < LOSS_SHARE else 0
        lost_s = lost_s if target == "redis" and not frozen else 0
        yield Blow(draw.uniform(*gap_s), target, seconds if frozen else 0, lost_s, first)
