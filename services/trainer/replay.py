"""A run's name and a range of steps -> those steps trained again, and one JSON line each that compares them."""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

from redis.asyncio import Redis

from services.trainer.reach_step import Recordings
from services.trainer.replay_steps import changed_settings, replay
from shared.deployment import Deployment, load_deployment
from shared.errors import SluiceError
from shared.logs import Log, configure
from shared.redis_connection import UNREACHABLE, connect_checked
from shared.settings import from_assignments

REDIS_DEADLINE_S = 3.0
"""Archive and checkpoints may hold all that is needed, so Redis is not waited for."""
FAILED = 2
"""Exit code where steps could not be compared; 1: they were, and something differs."""


def main() -> None:
    """`python -m services.trainer.replay RUN --from A --to B`: exit code 0 if everything is equal, bit for bit."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.replay", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--from", dest="first", type=int, required=True, help="the first step to compare, from 1")
    parser.add_argument("--to", dest="last", type=int, help="the last one; the newest if it is not given")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="trainer.NAME=VALUE")
    given = parser.parse_args()
    try:
        deployment = load_deployment()
        log = configure("replay", deployment.log.level, deployment.log.format == "json")
        equal = asyncio.run(_replay(deployment, log, given.run, given.first, given.last, given.assignments))
    except SluiceError as error:
        _write({"type": "error", "message": str(error)})
        sys.exit(FAILED)
    except UNREACHABLE as error:
        _write({"type": "error", "message": f"Redis went away ({error}); start it, and replay again"})
        sys.exit(FAILED)
    sys.exit(0 if equal else 1)


async def _replay(
    deployment: Deployment, log: Log, name: str, first: int, last: int | None, assignments: list[str]
) -> bool:
    async with _redis(deployment, log) as redis:
        recordings = Recordings(redis, deployment.runs_folder, log)
        run = await recordings.find(name)
        settings = changed_settings(run, from_assignments(assignments))
        equal, until, weights = True, first, 0
        async for comparison in replay(recordings, run, first, last, settings):
            _write({"type": "step", **comparison.as_json()})
            equal, until = equal and comparison.equal, comparison.step
            weights += len(comparison.weights)
    _write({"type": "verdict", "run": name, "from": first, "to": until, "equal": equal, "weight_checks": weights})
    return equal


@contextlib.asynccontextmanager
async def _redis(deployment: Deployment, log: Log) -> AsyncGenerator[Redis | None]:
    """The deployment's Redis, or None if it does not answer."""
    redis = None
    try:
        if deployment.redis.url:
            redis = await connect_checked(deployment.redis.url, REDIS_DEADLINE_S)
    except SluiceError as error:
        log.warning("without_redis", reason=str(error))
    try:
        yield redis
    finally:
        if redis is not None:
            await redis.aclose()


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
