"""A run that has ended -> no keys in Redis, no entry in the registry and, if asked for, no files."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import RunConflict
from shared.runs import ENDED, PRESENCE_S, RunRecord, Runs, present
from shared.topology import ACTIVE, QUEUE, RUNS, Keys

PAGE = 1000

_NOT_ACTIVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


async def delete_run(redis: Redis, record: RunRecord, runs_folder: Path, files: bool) -> None:
    """Its record goes last: a deletion that breaks off can be asked for again.

    Raises:
        RunConflict: the run has not ended, services are still leaving it, or a live run branches from it.
    """
    await _check(redis, record)
    await cast(Any, redis.eval(_NOT_ACTIVE, 1, ACTIVE, record.run))
    keys = Keys(record.run)
    async for page in _pages(redis, record.run):
        if rest := [key for key in page if key != keys.record.encode()]:
            await redis.unlink(*rest)
    if files:
        await asyncio.to_thread(_remove, runs_folder / record.run)
    await redis.unlink(keys.record)
    await redis.lrem(QUEUE, 0, record.run)
    await redis.zrem(RUNS, record.run)


async def _check(redis: Redis, record: RunRecord) -> None:
    run = record.run
    if record.state not in ENDED:
        raise RunConflict(f"run {run} is {record.state}; stop it first")
    if there := await present(redis, run):
        raise RunConflict(f"{', '.join(there)} did not leave run {run} yet; try again in {PRESENCE_S:g} s")
    for other in await Runs(redis).list():
        branch = other.settings.branch
        if branch is not None and branch.run == run and other.state not in ENDED:
            raise RunConflict(f"run {other.run} branches from run {run} and has not ended; stop it first")


async def _pages(redis: Redis, run: str) -> AsyncGenerator[list[bytes | str]]:
    cursor = -1
    while cursor:
        cursor, page = await redis.scan(max(cursor, 0), match=f"{{{run}}}:*", count=PAGE)
        yield page


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
