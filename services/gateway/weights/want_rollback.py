"""The number of an older version -> a wish that the trainer goes back to it, or a refusal that says what can be had."""

from dataclasses import asdict
from pathlib import Path

from redis.asyncio import Redis

from services.gateway.refusals import Refusal
from services.gateway.weights.describe_versions import Standing, where_versions_stand
from shared.errors import RunConflict
from shared.rollback import ask_rollback
from shared.runs import RunRecord
from shared.topology import Keys
from shared.weights_answers import RollbackAnswer

LIVE = ("starting", "running")


async def want_rollback(redis: Redis, record: RunRecord, runs_folder: Path, version: int) -> RollbackAnswer:
    """Ask for it; to ask for the same twice is no error.

    Raises:
        Refusal: 404, the run never made this version.
        RunConflict: the run is not live, goes back already, or cannot go back to this version.
    """
    run, standing = record.run, await where_versions_stand(redis, record, runs_folder)
    if not standing.first <= version <= standing.newest:
        raise Refusal(404, f"run {run} has no version {version}; give one of {standing.first} to {standing.newest}")
    if record.state not in LIVE:
        raise RunConflict(
            f"run {run} is {record.state}, and only a live one goes back; {_instead(record, standing, version)}"
        )
    if version == standing.newest:
        raise RunConflict(f"version {version} is what run {run} goes on from anyway; give an older one")
    if gone := standing.why_gone(version):
        raise RunConflict(gone)
    asked = await ask_rollback(redis, Keys(run), version)
    if asked.version != version:
        raise RunConflict(f"run {run} is about to go back to version {asked.version}; wait until it has")
    return RollbackAnswer(run=run, **asdict(asked))


def _instead(record: RunRecord, standing: Standing, version: int) -> str:
    if record.state == "queued":
        return "ask again when it runs"
    return standing.why_gone(version) or (
        f"start a run that goes on from that version: sluice branch {record.run} --from {version}"
    )
