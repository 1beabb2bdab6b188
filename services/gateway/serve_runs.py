"""/v1/runs: create, list, show, stop, delete; the steps, samples and events of a run."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from services.gateway.bookmark import parse_bookmark
from services.gateway.check_run import check_run, parse_run
from services.gateway.delete_run import delete_run
from services.gateway.describe_run import describe_run
from services.gateway.parts import AllParts
from services.gateway.read_samples import read_samples
from services.gateway.read_steps import read_steps
from services.gateway.refusals import Refusal
from services.gateway.stop_run import stop_run
from services.gateway.stream_events import EventFeed
from services.gateway.suggest_name import suggest
from shared.rest_answers import ErrorAnswer, Run, RunList, SampleList, Step, StepList
from shared.rest_examples import SETTINGS, SETTINGS_TOML
from shared.runs import ENDED, RunRecord, Runs

MAX_BODY_BYTES = 2**20
routes = APIRouter(prefix="/v1/runs", tags=["runs"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The run settings: the tree of the run file as JSON, or the text of the file itself.",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": SETTINGS},
            "application/toml": {"schema": {"type": "string"}, "example": SETTINGS_TOML},
        },
    }
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}


async def _find(parts: AllParts, run: str) -> RunRecord:
    record = await Runs(parts.redis).get(run)
    if record is None:
        names = [one.run for one in await Runs(parts.redis).list()]
        raise Refusal(404, f"there is no run {run!r}; {suggest(run, names, 'runs')}")
    return record


Found = Annotated[RunRecord, Depends(_find)]


@routes.post(
    "", status_code=201, openapi_extra=_BODY, responses={s: {"model": ErrorAnswer} for s in (409, 413, 415, 422)}
)
async def create_run(request: Request, parts: AllParts) -> Run:
    """Check the settings and queue the run. It starts when the services are free."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refusal(413, f"run settings are at most {MAX_BODY_BYTES} bytes; upload rows as a dataset")
    settings = parse_run(request.headers.get("content-type", ""), bytes(body))
    async with parts.claims:
        await asyncio.to_thread(check_run, settings, parts.datasets)
        return await describe_run(parts.redis, await Runs(parts.redis).create(settings))


@routes.get("")
async def list_runs(parts: AllParts) -> RunList:
    """All runs, oldest first."""
    return RunList(runs=[await describe_run(parts.redis, record) for record in await Runs(parts.redis).list()])


@routes.get("/{run}", responses=_MISSING)
async def show_run(parts: AllParts, record: Found) -> Run:
    """One run: its state, counts, evaluations and newest metrics."""
    return await describe_run(parts.redis, record)


@routes.post("/{run}/stop", responses={**_MISSING, 409: {"model": ErrorAnswer}})
async def stop(parts: AllParts, record: Found) -> Run:
    """End a run early: the trainer finishes its step, saves a checkpoint and exports the model."""
    await stop_run(parts.redis, record)
    return await describe_run(parts.redis, await _find(parts, record.run))


@routes.delete("/{run}", status_code=204, responses={**_MISSING, 409: {"model": ErrorAnswer}})
async def delete(parts: AllParts, record: Found, files: bool = False) -> None:
    """Delete a run that has ended: everything of it in Redis, and with `files` its checkpoints, export and archive."""
    async with parts.claims:
        await delete_run(parts.redis, record, parts.runs_folder, files)


@routes.get("/{run}/steps", responses=_MISSING)
async def list_steps(
    parts: AllParts,
    record: Found,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> StepList:
    """Optimizer steps after step `after`, oldest first, with their metrics."""
    commits = await read_steps(parts.redis, record.run, after, limit)
    return StepList(steps=[Step(step=c.step, weight_version=c.weight_version, metrics=c.metrics) for c in commits])


@routes.get("/{run}/samples", responses=_MISSING)
async def list_samples(
    parts: AllParts,
    record: Found,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    group_id: Annotated[int | None, Query(ge=0)] = None,
    evaluations: bool | None = None,
) -> SampleList:
    """Scored attempts that are still kept, newest groups first; or those of one group. `evaluations` wants only
    attempts of evaluations (true) or none of them (false)."""
    return SampleList(samples=await read_samples(parts.redis, record.run, limit, group_id, evaluations))


@routes.get("/{run}/events", responses={**_MISSING, 200: {"content": {"text/event-stream": {}}}}, response_model=None)
async def follow_events(
    parts: AllParts, record: Found, last_event_id: Annotated[str, Header()] = "", follow: bool = True
) -> Response | StreamingResponse:
    """Server-sent events `state`, `step`, `evaluation`, `weights` and `event`, from the beginning or after
    Last-Event-ID. The stream ends when the run has ended; with `follow=false`, once all that is there was sent. 204:
    there is nothing after Last-Event-ID any more."""
    mark = parse_bookmark(last_event_id)
    if record.state in ENDED and mark.state == record.state:
        return Response(status_code=204)  # by its standard, EventSource stops asking after a 204
    events = EventFeed(parts.redis, record.run, mark, parts.closing, follow).stream()
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
