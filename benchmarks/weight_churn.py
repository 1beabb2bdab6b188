"""A seed -> versions published to real engines under load, while engines die, freeze and come; and a verdict.

`python -m benchmarks.weight_churn --mode retract --updates 50 --engines 3 --seed 0 --json FILE`: real SGLang on the CPU
behind the real router, groups through the rollout worker's own path, versions by the trainer's own publisher. The exit
code is 1 if a request failed, a version took longer than its deadline, a living engine does not end with the newest
one, or a token does not have the probability of the version that its span names.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.churn.blows import Striker, plan_blows
from benchmarks.churn.load import Clients
from benchmarks.churn.policy import Policy
from benchmarks.churn.stack import CONTEXT, Stack, running_stack
from benchmarks.churn.verdict import Found, Update, judge
from services.rollout.engine_calls import EngineCalls, EngineError
from services.trainer.publish_weights import Deadlines
from services.trainer.step_ledger import StepLedger
from shared.messages import Event, WeightVersion
from shared.runs import present
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, WEIGHTS

MODES = ("retract", "abort", "in_place", "drain")
ENROL_S, UPDATE_S, FIRST_S = 10.0, 30.0, 600.0
SETTLE_S = 180.0
"""Seconds after the last update in which engines that were struck come back and get the newest version."""
POLL_S = 0.5
CHECK_S = 30.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_churn", description=__doc__)
    parser.add_argument("--mode", choices=MODES, default="retract")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-unavailable", type=int, default=0, help="engines that are paused at once; 0 for all")
    parser.add_argument("--clients", type=int, default=4, help="groups that are under way at once")
    parser.add_argument("--interval", type=float, default=4.0, help="seconds between two updates, at least")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--freezes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the verdict")
    parser.add_argument("--home", type=Path, help="folder of the deployment; kept. Default: a temporary one")
    return parser.parse_args(arguments)


def run_tree(given: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run."""
    return {
        "data": {"datasets": [{"name": "sums"}]},
        "trainer": {"steps": 1000},
        "rollout": {"partial_tokens": 256, "partial_seconds": 2, "request_deadline_s": 120},
        "engine": {
            "device": "cpu",
            "update_mode": given.mode,
            "server_args": {"context_length": CONTEXT, "max_total_tokens": 32768, "stream_interval": 4},
        },
        "weights": {"max_unavailable": given.max_unavailable},
    }


class Warnings(logging.Handler):
    """Counts what the product warns of in this process, and keeps the sentences in a file."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()
        self._file = file.open("a")

    def emit(self, record: logging.LogRecord) -> None:
        self.counts[record.getMessage()] += 1
        line = {"time": record.created, "event": record.getMessage(), **getattr(record, "fields", {})}
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()


class Churn:
    """One bout."""

    def __init__(self, stack: Stack, given: argparse.Namespace) -> None:
        self._stack, self._given = stack, given
        self._warnings = Warnings(stack.deployment.paths.home / "logs" / "warnings.jsonl")
        logging.getLogger("sluice").addHandler(self._warnings)
        self._began = time.monotonic()
        deadlines = Deadlines(ENROL_S, UPDATE_S, FIRST_S, given.max_unavailable)
        ledger = StepLedger(stack.redis, stack.settings.name)
        self._policy = Policy(ledger, Path(stack.settings.model.path), deadlines, given.seed)
        self._striker = Striker(stack, given.seed, self._say)
        self._clients = Clients(stack, given.clients, given.seed)

    async def run(self) -> dict[str, Any]:
        """Publish, strike and ask until all is over; the verdict."""
        for index in range(max(1, self._given.engines - 1)):
            self._stack.start_engine(index)
        await self._first_engine()
        asking = asyncio.create_task(self._clients.run())
        try:
            updates = await self._updates(asking)
            await self._striker.all_over()
            ends = await self._settle()
            self._clients.stop()
            await asking
            unequal = await self._unequal(ends)
        finally:
            await end(asking)
            await self._policy.close()
        self._say("recomputing the probability of every token")
        differences = await asyncio.to_thread(self._policy.differences, self._clients.load.rollouts)
        load, warnings = self._clients.load, dict(self._warnings.counts)
        found = Found(self._given.mode, updates, load, differences, ENROL_S + UPDATE_S, ends, unequal, warnings)
        return {**self._about(), **judge(found), "events": await self._events(), "blows": self._striker.done}

    async def _updates(self, asking: "asyncio.Task[None]") -> list[Update]:
        given, updates = self._given, list[Update]()
        blows = plan_blows(given.seed, given.updates, given.engines, given.kills, given.freezes, given.interval)
        while len(updates) < given.updates:
            for blow in (blow for blow in blows if blow.update == len(updates)):
                self._striker.strike(blow)
            start = time.monotonic()
            report, seconds = await self._policy.publish()
            update = Update(report.version, start, time.monotonic(), seconds, len(report.done), report.failed)
            update.struck = bool(report.failed) or any(0 <= report.version - blow.update <= 2 for blow in blows)
            updates.append(update)
            self._say(f"version {report.version} in {seconds:.2f} s, done {update.done}, failed {report.failed}")
            await asyncio.wait({asking}, timeout=max(0.0, start + given.interval - time.monotonic()))
            if asking.done():
                asking.result()
            self._policy.check_joiners()
        return updates

    async def _first_engine(self) -> None:
        """Wait until one is up; it is no part of an update."""
        until = time.monotonic() + FIRST_S
        while not await present(self._stack.redis, self._stack.settings.name, "engine-up"):
            if time.monotonic() > until:
                raise TimeoutError(f"no engine came up within {FIRST_S:g} s")
            await asyncio.sleep(POLL_S)

    async def _settle(self) -> dict[str, str]:
        """Wait until every engine is listed and serves the newest version; what each serves then."""
        until, newest = time.monotonic() + SETTLE_S, str(self._policy.newest)
        engines = range(self._given.engines)
        while True:
            served = {f"engine-{index}": await self._stack.served_by(index) or "nothing" for index in engines}
            everywhere = set(served.values()) == {newest} and len(await self._stack.listed()) == len(engines)
            if everywhere or time.monotonic() > until:
                return served
            await asyncio.sleep(POLL_S)

    async def _unequal(self, ends: dict[str, str]) -> list[str]:
        """Engines whose own hashes are not those that the publisher announced."""
        newest = await Stream[WeightVersion](self._stack.redis, self._stack.settings.name, WEIGHTS).newest()
        assert newest is not None, "versions were published"
        wrong: list[str] = []
        for index, name in enumerate(ends):
            calls = EngineCalls(self._stack.engine_url(index))
            found: list[dict[str, str]] = []
            with suppress(EngineError):
                found = await calls.checksums(CHECK_S)
            await calls.close()
            if found != [newest[1].tensor_checksums]:
                wrong.append(name)
        return wrong

    async def _events(self) -> dict[str, int]:
        stream: Stream[Event] = Stream(self._stack.redis, self._stack.settings.name, EVENTS)
        return dict(Counter(event.event for _, event in await stream.read()))

    def _about(self) -> dict[str, Any]:
        names = ("mode", "updates", "engines", "seed", "max_unavailable", "clients", "interval")
        given = {name: getattr(self._given, name) for name in names}
        return {**given, "seconds": round(time.monotonic() - self._began, 1)}

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {line}", file=sys.stderr, flush=True)


async def churn(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """One bout in a folder."""
    async with running_stack(home, given.engines, run_tree(given), given.seed) as stack:
        return await Churn(stack, given).run()


def main() -> None:
    """Print the verdict; the folder is kept if it is not perfect."""
    given = parse()
    home = given.home or Path(tempfile.mkdtemp(prefix="sluice-churn-"))
    home.mkdir(parents=True, exist_ok=True)
    verdict = asyncio.run(churn(given, home.absolute()))
    text = json.dumps(verdict, indent=1)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)
    if not verdict["perfect"]:
        print(f"not perfect; logs and data are in {home}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
