"""/v1/runs/{run}/weights: the versions of a run, which engines took them, and a way back to an older one."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from services.gateway.parts import AllParts
from services.gateway.serve_runs import Found
from services.gateway.weights.describe_versions import describe_version, list_versions
from services.gateway.weights.want_rollback import want_rollback
from shared.rest_answers import ErrorAnswer
from shared.weights_answers import RollbackAnswer, VersionDetails, VersionList

routes = APIRouter(prefix="/v1/runs", tags=["weights"])
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}
Number = Annotated[int, Path(ge=0)]


@routes.get("/{run}/weights", responses=_MISSING)
async def list_weights(
    parts: AllParts,
    record: Found,
    before: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> VersionList:
    """The versions of the run, newest first; or those before version `before`."""
    return await list_versions(parts.redis, record, parts.runs_folder, before, limit)


@routes.get("/{run}/weights/{version}", responses=_MISSING)
async def show_weights(parts: AllParts, record: Found, version: Number) -> VersionDetails:
    """One version: its checksum, what its step trained, and when and how each engine took it."""
    return await describe_version(parts.redis, record, parts.runs_folder, version)


@routes.post("/{run}/weights/{version}/rollback", status_code=202, responses={**_MISSING, 409: {"model": ErrorAnswer}})
async def roll_back(parts: AllParts, record: Found, version: Number) -> RollbackAnswer:
    """Ask a live run to go back: its trainer records a step that starts from this version, publishes its weights under
    the number of that step, and trains on from there. What became of it is in `rollback` of the list of versions."""
    return await want_rollback(parts.redis, record, parts.runs_folder, version)
