"""A step of a run and changed settings -> a new run that goes on from there: /v1/runs/{run}/branch."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.gateway.branch_cursor import BEGIN, begin_of, cursor_behind, released_until
from services.gateway.check_run import check_run
from services.gateway.describe_run import describe_run
from services.gateway.mix_datasets import dump_cursor
from services.gateway.parts import AllParts, Parts
from services.gateway.release_training import FIELD
from services.gateway.serve_runs import Found
from services.gateway.weights.describe_versions import where_versions_stand
from shared.errors import SettingsError
from shared.rest_answers import ErrorAnswer, Run
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs
from shared.settings import Tree, merge, validate
from shared.topology import Keys

routes = APIRouter(prefix="/v1/runs", tags=["runs"])

_EXAMPLE: dict[str, Any] = {"step": 20, "name": "sums-cooler", "settings": {"trainer": {"learning_rate": 1e-5}}}


class BranchRequest(BaseModel):
    """Where a new run goes on, and what is different in it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})
    step: Annotated[int, Field(ge=0)]
    """The step of this run whose weights, optimizer and schedule the new run begins with."""
    name: str = ""
    """Name of the new run; empty: `<run>-<step>`."""
    settings: dict[str, Any] = {}
    """Settings of the new run that differ from this run's, as a tree."""


@routes.post("/{run}/branch", status_code=201, responses={s: {"model": ErrorAnswer} for s in (404, 409, 422)})
async def branch_run(parts: AllParts, record: Found, wanted: BranchRequest) -> Run:
    """Queue a run that goes on from a step of this one, with changed settings. This run is not touched."""
    settings = branch_settings(record, wanted)
    await _check_step(parts, record, settings)
    async with parts.claims:
        await asyncio.to_thread(check_run, settings, parts.datasets)
        counters = begin_counters(wanted.step, settings.rollout.groups_per_step)
        cursor = await _cursor(parts, record.settings, settings, wanted.step)
        return await describe_run(parts.redis, await Runs(parts.redis).create(settings, counters, cursor))


def branch_settings(parent: RunRecord, wanted: BranchRequest) -> RunSettings:
    """The parent's settings with the changes; SettingsError where a branch cannot have them."""
    for name in ("name", "branch"):
        if name in wanted.settings:
            raise SettingsError(
                f"{name} is not for the settings of a branch; give name and step beside them (`--name`, `--from`)"
            )
    tree = parent.settings.model_dump(mode="json")
    origin: Tree = {
        "name": wanted.name or f"{parent.run}-{wanted.step}",
        "branch": {"run": parent.run, "step": wanted.step},
    }
    settings = validate(RunSettings, merge(tree, wanted.settings, origin), "branch")
    for name, theirs, ours in (
        ("kind", parent.settings.kind, settings.kind),
        ("model.dtype", parent.settings.model.dtype, settings.model.dtype),
    ):
        if theirs != ours:
            raise SettingsError(
                f"branch: {name} is {ours!r}, but run {parent.run}, whose optimizer goes on, has {theirs!r}; leave it,"
                f" or start a run with model.path = the export of {parent.run}"
            )
    _check_adapters(parent, settings)
    return settings


def _check_adapters(parent: RunRecord, settings: RunSettings) -> None:
    theirs, ours = parent.settings.lora, settings.lora
    if not ours.goes_on_from(theirs):
        raise SettingsError(
            f"branch: [lora] differs from that of run {parent.run}, whose optimizer goes on; leave it, but for"
            f" lora.publish, or start a run with model.path = the export of {parent.run}"
        )
    if ours.rank and settings.model.path != parent.settings.model.path:
        raise SettingsError(
            f"branch: model.path is {settings.model.path!r}, and the adapters of run {parent.run} are for"
            f" {parent.settings.model.path}; leave it out"
        )


def begin_counters(step: int, groups_per_step: int) -> dict[str, int]:
    """Counts of a run as if it had done `step` steps, whose groups are another run's."""
    inherited = step * groups_per_step
    return {
        "step": step,
        "intended": step,
        "forgotten_step": step,
        "released": inherited,
        "inherited": inherited,
    }


async def _check_step(parts: Parts, parent: RunRecord, settings: RunSettings) -> None:
    assert settings.branch is not None
    step, begin = settings.branch.step, parent.settings.branch
    standing = await where_versions_stand(parts.redis, parent, parts.runs_folder)
    done = standing.newest
    if step > done:
        raise SettingsError(f"branch: run {parent.run} has done {done} steps; branch from a step of 0 to {done}")
    if begin and step < begin.step:
        raise SettingsError(
            f"branch: run {parent.run} is itself a branch and begins at step {begin.step}; branch from {begin.run}"
        )
    if step >= settings.trainer.steps:
        raise SettingsError(
            f"branch: trainer.steps is {settings.trainer.steps}, counted from the beginning, so nothing is left after"
            f" step {step}; write trainer.steps = {step + 1} or more"
        )
    if (gone := standing.why_gone(step)) and not (begin and await _is_known(parts, begin.run)):
        raise SettingsError(f"branch: of run {parent.run}, {gone}")


async def _is_known(parts: Parts, run: str) -> bool:
    """Whether a branch's own parent is there, which may have what the branch has not."""
    if await Runs(parts.redis).get(run) is not None:
        return True
    return await asyncio.to_thread((parts.runs_folder / run).is_dir)


async def _cursor(parts: Parts, theirs: RunSettings, ours: RunSettings, step: int) -> dict[str, str]:
    """The feeder's cursor behind the parent's rows; a run with other data, or another order, begins at its first."""
    if (theirs.data, theirs.seed) != (ours.data, ours.seed):
        return {}
    keys = Keys(theirs.name)
    released = await released_until(parts.redis, keys, step)
    sizes = {share.name: parts.datasets.get(share.name).rows for share in ours.data.datasets}
    begin = await begin_of(parts.redis, keys)
    behind = dump_cursor(await asyncio.to_thread(cursor_behind, begin, ours.data, sizes, released))
    return {FIELD: behind, BEGIN: behind}
