"""`sluice weights ...`: the versions of a run, which engines took them, and a way back to an older one."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from shared.lineage import spans_in_words
from shared.weights_answers import VersionDetails, VersionList, VersionSummary
from sluice.cli.engine_table import SHORT, engine_table
from sluice.cli.follow_rollback import follow_rollback
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import clock, note, print_json, short_clock, show, size, table

app = typer.Typer(help="Weight versions: what made them, who took them, and a way back.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(help="Name of the run.")]
Number = Annotated[int, typer.Argument(min=0, help="Number of the version, as in `sluice weights list`.")]
GROUP_IDS = 16


@app.command("list")
def list_(
    run: RunName,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most versions to show.")] = 20,
    before: Annotated[int | None, typer.Option("--before", min=0, help="Only versions before this one.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the weight versions of a run, newest first."""
    with client_of(config) as client:
        found = client.weights(run, limit, before)
    show(as_json, found, Group(*_list(found)) if found.versions else "no versions yet")


@app.command("show")
def show_(run: RunName, version: Number, config: Config = None, as_json: AsJson = False) -> None:
    """Show one version: its checksum, what its step trained, and when and how each engine took it."""
    with client_of(config) as client:
        found = client.weight_version(run, version)
    show(as_json, found, Group(*_details(found)))


@app.command("rollback")
def rollback(
    run: RunName,
    version: Number,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run is asked.")] = False,
    within_s: Annotated[float, typer.Option("--within", min=1, help="Most seconds to wait for the engines.")] = 600.0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a live run go back to an older version, and wait until its engines serve it. Exit code 1 if it does not."""
    with client_of(config) as client:
        asked = client.roll_back(run, version)
        if not detach:
            asked = follow_rollback(client, asked, within_s)
        made = None if asked.step is None else client.weight_version(run, asked.step)
    if as_json:
        print_json(asked)
    elif made is None:
        note(f"run {run} is to go back to version {version}; `sluice weights list {run}` shows when it has")
    else:
        text = f"version {made.version} of run {run} has the weights of version {made.parent}"
        taken = f"; taken by {_engines(made)} engines" if made.engines_done else ""
        note(f"{text}, and the run goes on from it{taken}")


def _list(found: VersionList) -> list[RenderableType]:
    metric = "reward_mean" if any("reward_mean" in one.metrics for one in found.versions) else "loss"
    columns = ("version", "parent", "tokens", metric.removesuffix("_mean"), "made", "engines", "checksum", "")
    rows = [
        (
            one.version,
            one.parent,
            one.tokens,
            one.metrics.get(metric),
            short_clock(one.committed or one.announced),
            _engines(one),
            (one.checksum or "-")[:SHORT],
            _remark(one),
        )
        for one in found.versions
    ]
    views: list[RenderableType] = [table(columns, rows, fixed=columns[:-1])]
    if (oldest := found.versions[-1]).parent is not None:
        views.append(f"older ones: --before {oldest.version}, or more at once by --limit")
    if found.available is not None:
        views += ["", f"a rollback or a branch could go to: {spans_in_words(found.available)}"]
    asked = found.rollback
    if asked is not None and asked.state != "recorded":
        views.append(f"a rollback to version {asked.version} was {asked.state}{asked.reason and f': {asked.reason}'}")
    return views


def _details(found: VersionDetails) -> list[RenderableType]:
    facts = [(name, value) for name, value in _facts(found).items() if value not in (None, "")]
    views: list[RenderableType] = [table(("version", str(found.version)), facts)]
    if found.engines:
        views += ["", engine_table(found.engines)]
    if found.phases:
        views += ["", table(("phase", "seconds"), found.phases.items())]
    if found.metrics:
        views += ["", table(("metric", "value"), sorted(found.metrics.items()))]
    return views


def _facts(found: VersionDetails) -> dict[str, Any]:
    more = len(found.group_ids) - GROUP_IDS
    return {
        "state": _remark(found),
        "checksum": found.checksum,
        "other weights that had its number": ", ".join(found.replaced),
        "parent": found.parent if found.parent_run is None else f"version {found.version} of run {found.parent_run}",
        "trained": f"{found.groups} groups, {found.attempts} attempts, {found.tokens} tokens" if found.groups else "",
        "groups": ", ".join(map(str, found.group_ids[:GROUP_IDS])) + (f" and {more} more" if more > 0 else ""),
        "committed": clock(found.committed) if found.committed else None,
        "announced": clock(found.announced) if found.announced else None,
        "announcements": found.announcements or None,
        "bytes": size(found.nbytes) if found.nbytes else None,
        "sent by": found.backend,
        "engines": _engines(found),
        "engines not listed": found.more_takes or None,
    }


def _engines(one: VersionSummary) -> str:
    """How many took it, of those that have answered."""
    if one.checksum is None:
        return "-"
    answered = one.engines_done + one.engines_failed
    return f"{one.engines_done} of {answered}" if answered else "none yet"


def _remark(one: VersionSummary) -> str:
    """What a person should know of it at a glance."""
    return "current" if one.is_current else "" if one.left_at is None else f"left at {one.left_at}"
