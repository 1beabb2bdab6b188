"""A seed -> at which updates engines are killed, frozen and started late; and what that does to their processes."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.churn.stack import Stack

FREEZE_S = (2.0, 15.0)
APART = 4
"""Updates between two blows, so that an engine is mostly back before the next one."""
POLL_S = 0.1
WITHIN_S = 0.4
"""Half of the blows fall within so many seconds of an update's start, the others between two updates."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to an engine."""

    update: int
    kind: str
    """kill (SIGKILL), freeze (SIGSTOP, later SIGCONT) or start."""
    after_s: float
    """Seconds after the update began."""
    engine: int
    """The one to be struck, or the next one that serves."""
    whole: bool = True
    """All processes of the engine, or one of them."""
    freeze_s: float = 0


def plan_blows(seed: int, updates: int, engines: int, kills: int, freezes: int, interval_s: float) -> list[Blow]:
    """Blows in the order of their updates; the last engine is started by the first one."""
    draw = random.Random(seed)
    kinds = ["kill"] * kills + ["freeze"] * freezes
    draw.shuffle(kinds)
    late = Blow(draw.randint(2, max(2, updates // 8)), "start", draw.uniform(0, WITHIN_S), engines - 1)
    room = range(late.update + APART, updates - APART, APART)
    at = sorted(draw.sample(room, min(len(kinds), len(room))))
    return [late, *(_blow(draw, update, kind, engines, interval_s) for update, kind in zip(at, kinds, strict=False))]


def _blow(draw: random.Random, update: int, kind: str, engines: int, interval_s: float) -> Blow:
    within = draw.random() < 0.5
    after_s = draw.uniform(0, WITHIN_S) if within else draw.uniform(WITHIN_S, interval_s)
    freeze_s = draw.uniform(*FREEZE_S) if kind == "freeze" else 0
    return Blow(update, kind, after_s, draw.randrange(engines), draw.random() < 0.5, freeze_s)


class Striker:
    """Does what was planned."""

    def __init__(self, stack: Stack, seed: int, say: Callable[[str], None]) -> None:
        self._stack, self._say, self._draw = stack, say, random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self.done: list[str] = []

    def strike(self, blow: Blow) -> None:
        """Begin, and return at once."""
        task = asyncio.create_task(self._strike(blow))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def all_over(self) -> None:
        """Wait until nothing is frozen any more."""
        await asyncio.gather(*self._under_way)

    async def _strike(self, blow: Blow) -> None:
        await asyncio.sleep(blow.after_s)
        if blow.kind == "start":
            self._note(blow, "")
            return self._stack.start_engine(blow.engine)
        engine = await self._next_serving(blow.engine)
        blow, family = replace(blow, engine=engine), self._stack.engine_processes(engine)
        pids = family if blow.whole else [self._draw.choice(family)]
        if blow.kind == "kill":
            self._note(blow, f" ({len(pids)} of {len(family)} processes)")
            return _signal(pids, signal.SIGKILL)
        self._note(blow, f" for {blow.freeze_s:.1f} s ({len(pids)} of {len(family)} processes)")
        _signal(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(blow.freeze_s)
        finally:
            _signal(pids, signal.SIGCONT)

    async def _next_serving(self, engine: int) -> int:
        """Wait until the router lists an engine; the number of the first one from `engine` on."""
        engines = self._stack.deployment.engine.count
        while True:
            listed = await self._stack.listed()
            for index in ((engine + more) % engines for more in range(engines)):
                if self._stack.engine_url(index) in listed:
                    return index
            await asyncio.sleep(POLL_S)

    def _note(self, blow: Blow, how: str) -> None:
        text = f"update {blow.update} + {blow.after_s:.2f} s: {blow.kind} engine {blow.engine}{how}"
        self.done.append(text)
        self._say(text)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
