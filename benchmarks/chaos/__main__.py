"""A seed -> kills of every service and of Redis in a real stack, and a verdict from its ledger.

`python -m benchmarks.chaos --variant fast --kills 200 --seed 1 --redis-fsync everysec --json verdict.json`. The exit
code is 1 if the verdict is not perfect. Targets, gaps and freezes come from the seed; what a process is doing when it
is hit does not.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.harness import STEPS, Harness
from benchmarks.chaos.schedule import TARGETS
from benchmarks.chaos.stack import running_stack


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--variant", choices=("fast", "real"), default="fast", help="fast: no SGLang, tokens by hash")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of each run; there are as many runs as the kills take")
    parser.add_argument("--redis-fsync", choices=("always", "everysec"), default="everysec")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=[], help="kill these services only")
    parser.add_argument("--json", type=Path, help="where to write the verdict")
    parser.add_argument("--home", type=Path, help="folder of the deployment; kept. Default: a temporary one")
    return parser.parse_args(arguments)


def chaos(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """One bout in a folder."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", file=sys.stderr, flush=True)

    with running_stack(home, given.variant, given.seed, given.redis_fsync) as stack:
        steps = given.steps or STEPS[given.variant]
        harness = Harness(stack, given.variant, given.seed, given.kills, steps, tuple(given.only), say)
        return asyncio.run(harness.run())


def _end(*_: object) -> None:
    sys.exit(143)  # by an exception, so that what was started is stopped


def main() -> None:
    """Print the verdict; the folder is kept if it is not perfect."""
    given = parse()
    signal.signal(signal.SIGTERM, _end)
    home = given.home or Path(tempfile.mkdtemp(prefix="sluice-chaos-"))
    verdict = chaos(given, home.absolute())
    text = json.dumps(verdict, indent=1)
    if given.json:
        given.json.write_text(text + "\n")
    print(json.dumps({name: value for name, value in verdict.items() if name not in ("runs", "ledgers")}, indent=1))
    if not verdict["perfect"]:
        print(f"not perfect; logs and data are in {home}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
