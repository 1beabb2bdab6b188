"""A request to stop -> queued runs end at once, served runs are asked to save and end."""

from redis.asyncio import Redis

from shared.errors import RunConflict
from shared.runs import ENDED, RunRecord, Runs
from shared.topology import QUEUE


async def stop_run(redis: Redis, record: RunRecord) -> None:
    """Stop a run; stopping it twice is no error.

    Raises:
        RunConflict: the run has finished or failed.
    """
    runs = Runs(redis)
    if await runs.move(record.run, ("queued",), "stopped", "stopped before it started"):
        await redis.lrem(QUEUE, 0, record.run)
        return
    if await runs.move(record.run, ("starting", "running"), "stopping", "stopped by request"):
        return
    now = await runs.get(record.run)
    if now is not None and now.state in ENDED and now.state != "stopped":
        raise RunConflict(f"run {record.run} has {now.state} already; there is nothing to stop")
