"""A stack, a schedule and a series of runs -> blows until all kills are done, then the runs' ends, then the verdict."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redis.asyncio import Redis

from benchmarks.chaos.run_series import RunSeries, Stuck
from benchmarks.chaos.schedule import Blow, blows
from benchmarks.chaos.stack import Stack, Variant
from benchmarks.chaos.targets import NotBack, Targets
from benchmarks.chaos.verdict import RunVerdict, judge
from shared.ledger_answers import LedgerAnswer
from shared.redis_connection import connect_checked
from sluice.client import GatewayError

GAP_S: dict[Variant, tuple[float, float]] = {"fast": (0.3, 2.5), "real": (2.0, 10.0)}
STEPS: dict[Variant, int] = {"fast": 25, "real": 15}
ALL_BACK_S = 120.0


@dataclass
class Score:
    """What was done to the stack."""

    kills: Counter[str] = field(default_factory=Counter[str])
    freezes: Counter[str] = field(default_factory=Counter[str])
    losses: list[int] = field(default_factory=list[int])
    """Bytes that Redis lost, each time its machine lost power."""
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Harness:
    """One bout of chaos."""

    stack: Stack
    variant: Variant
    seed: int
    kills: int
    steps: int
    only: tuple[str, ...]
    """Targets; empty for all."""
    say: Callable[[str], None]

    async def run(self) -> dict[str, Any]:
        """Kill until the number is reached and every run has ended; the verdict as JSON."""
        began, score = time.monotonic(), Score()
        series = RunSeries(self.stack, self.variant, self.seed, self.steps)
        targets = Targets(self.stack.home, self._engine_url(), self.seed)
        watching = asyncio.create_task(targets.watch_file())
        following = asyncio.create_task(series.follow(lambda: score.kills.total() < self.kills))
        try:
            await self._strike(series, targets, score, following)
            await targets.all_thawed()
            self.say(
                f"{score.kills.total()} kills done after {time.monotonic() - began:.0f} s; waiting for the run to end"
            )
            await following
        except (Stuck, NotBack, TimeoutError, GatewayError) as error:
            score.problems.append(f"{type(error).__name__}: {error}")
        finally:
            following.cancel()
            watching.cancel()
        judged = await self._judge(series.names)
        ledgers = await self._ledgers(series, judged, score)
        return self._summary(score, judged, ledgers, time.monotonic() - began)

    async def _strike(self, series: RunSeries, targets: Targets, score: Score, following: "asyncio.Task[None]") -> None:
        for blow in blows(self.seed, GAP_S[self.variant], self.only):
            if blow.after_step:
                await first_of(following, series.step_made())
            await asyncio.wait({following}, timeout=blow.after_s)
            if following.done() or score.kills.total() >= self.kills:
                return
            pid = await targets.back(blow.target)
            run = series.now
            at = f"{run.run} {run.state}, step {run.step}" if run else "before the first run"
            self.say(f"{self._hit(targets, pid, blow, score)} ({pid}) at {at}")

    def _hit(self, targets: Targets, pid: int, blow: Blow, score: Score) -> str:
        """Do it, count it, and say what was done."""
        if blow.freeze_s:
            targets.freeze(pid, blow.freeze_s)
            score.freezes[blow.target] += 1
            return f"froze {blow.target} for {blow.freeze_s:.1f} s"
        score.kills[blow.target] += 1
        said = f"kill {score.kills.total()}: {blow.target}"
        if not blow.lost_s or self.stack.deployment.redis.fsync == "always":
            targets.kill(pid)
            return said
        lost = targets.cut(pid, blow.lost_s)
        score.losses.append(lost)
        return f"{said}, which lost {lost} bytes of its last {blow.lost_s:.2f} s"

    async def _judge(self, names: list[str]) -> list[RunVerdict]:
        redis: Redis = await connect_checked(self.stack.redis_url, ALL_BACK_S)
        try:
            return [await judge(redis, name) for name in names]
        finally:
            await redis.aclose()

    async def _ledgers(self, series: RunSeries, judged: list[RunVerdict], score: Score) -> list[LedgerAnswer]:
        """The product's own verdict on each run; that it differs from ours is a problem too."""
        found: list[LedgerAnswer] = []
        for run in judged:
            try:
                ledger = await series.ask(partial(self.stack.client.ledger, run.run, verify=True))
            except (Stuck, GatewayError) as error:
                score.problems.append(f"{run.run}: no ledger: {error}")
                continue
            found.append(ledger)
            score.problems += [f"{run.run}: the ledger says: {problem}" for problem in ledger.problems]
            score.problems += differences(run, ledger)
        return found

    def _summary(
        self,
        score: Score,
        judged: list[RunVerdict],
        ledgers: list[LedgerAnswer],
        seconds: float,
    ) -> dict[str, Any]:
        problems = [*score.problems, *(f"{run.run}: {problem}" for run in judged for problem in run.problems)]
        problems += [f"{run.run} is {run.state}: {run.reason}" for run in judged if run.state != "finished"]
        done = score.kills.total() == self.kills
        return {
            "variant": self.variant,
            "seed": self.seed,
            "redis_fsync": self.stack.deployment.redis.fsync,
            "kills": score.kills.total(),
            "kills_asked": self.kills,
            "kills_by_target": dict(sorted(score.kills.items())),
            "freezes_by_target": dict(sorted(score.freezes.items())),
            "power_cuts": len(score.losses),
            "bytes_cut": sum(score.losses),
            "groups_lost": sum(len(run.groups_lost) for run in judged),
            "groups_trained_twice": sum(len(run.groups_trained_twice) for run in judged),
            "balanced": all(run.balanced for run in judged),
            "steps_done": sum(run.steps_done for run in judged),
            "steps_asked": sum(run.steps_asked for run in judged),
            "groups_released": sum(run.released for run in judged),
            "groups_trained": sum(run.trained for run in judged),
            "groups_dropped": dict(sum((Counter(run.dropped) for run in judged), Counter[str]())),
            "dead_letters": sum(run.dead_letters for run in judged),
            "seconds": round(seconds, 1),
            "problems": problems,
            "perfect": done and not problems and all(run.perfect for run in judged),
            "runs": [run.as_json() for run in judged],
            "ledgers": [ledger.model_dump(mode="json") for ledger in ledgers],
        }

    def _engine_url(self) -> str:
        engine = self.stack.deployment.engine
        return f"http://{engine.host}:{engine.port}"


async def first_of(task: "asyncio.Task[None]", wait: Coroutine[Any, Any, None]) -> None:
    """Until one of both is over."""
    waiting = asyncio.create_task(wait)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def differences(run: RunVerdict, ledger: LedgerAnswer) -> list[str]:
    """Where the product's ledger and the independent reading tell different stories of one run."""
    groups = ledger.groups
    pairs: dict[str, tuple[object, object]] = {
        "steps": (ledger.step, run.steps_done),
        "released": (groups.released, run.released),
        "trained": (groups.trained, run.trained),
        "dropped": (sum(groups.dropped.values()) + groups.dead, sum(run.dropped.values())),
        "lost": (groups.lost, len(run.groups_lost)),
        "twice": (groups.twice, len(run.groups_trained_twice)),
        "balanced": (ledger.balanced, run.balanced),
    }
    return [
        f"{run.run}: the ledger says {name} {told}, and Redis {is_}"
        for name, (told, is_) in pairs.items()
        if told != is_
    ]
