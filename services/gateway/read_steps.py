"""The ledger of a run -> its commits after a step, oldest first."""

from typing import Any, cast

from redis.asyncio import Redis

from shared.messages import Codec, StepCommit, StepRecord
from shared.topology import STEPS, Keys

PAGE = 200
"""Entries read at once; other requests get their turn in between."""


async def read_steps(redis: Redis, run: str, after: int, limit: int) -> list[StepCommit]:
    """Commits of the steps after `after`, at most `limit`.

    The beginning is read forwards; the rest from the end backwards, which is short for a client that keeps up.
    """
    key, codec = Keys(run).stream(STEPS), cast(Codec[StepRecord], Codec(STEPS.message))
    commits: list[StepCommit] = []
    last = "+" if after else "-"
    while True:
        if after:
            page = cast(list[Any], await redis.xrevrange(key, max=last, count=PAGE))
        else:
            page = cast(list[Any], await redis.xrange(key, min=last, count=PAGE))
        found = [record for _, f in page if isinstance(record := codec.decode(f[b"m"]), StepCommit)]
        commits += [commit for commit in found if commit.step > after]
        reached = any(commit.step <= after for commit in found) if after else len(commits) >= limit
        if reached or len(page) < PAGE:
            return sorted(commits, key=lambda commit: commit.step)[:limit]
        last = f"({page[-1][0].decode()}"
