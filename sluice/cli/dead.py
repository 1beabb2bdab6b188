"""`sluice dead ...`: entries that were given up: listed, looked into, sent again or thrown away."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from shared.errors import SluiceError
from shared.ledger_answers import DeadEntry, Redriven
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import clock, note, print_json, show, size, table

app = typer.Typer(help="Dead letters: entries that were given up after their last delivery.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(help="Name of the run.")]
Groups = Annotated[list[int] | None, typer.Argument(help="Numbers of groups, as listed.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_(
    run: RunName,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most letters to show.")] = 20,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    with client_of(config) as client:
        found = client.dead_letters(run, limit)
    rows = [(one.id, one.stream, one.group_id, one.deliveries, one.error) for one in found.letters]
    columns = ("letter", "stream", "group", "tries", "error")
    views: list[RenderableType] = [table(columns, rows, fixed=columns[:-1])]
    if found.total > len(rows):
        views.append(f"... {found.total - len(rows)} more; --limit shows them")
    show(as_json, found, Group(*views) if rows else f"run {run} has no dead letters")


@app.command("show")
def show_(
    run: RunName,
    letter: Annotated[str, typer.Argument(help="Id of the letter, as listed.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter, and what was in its entry."""
    with client_of(config) as client:
        found = client.dead_letter(run, letter)
    show(as_json, found, _view(found))


@app.command("redrive")
def redrive(
    run: RunName, groups: Groups = None, everything: All = False, config: Config = None, as_json: AsJson = False
) -> None:
    """Send the entries of dead groups again. Exit code 1 if none could be sent."""
    _check_choice(bool(groups), everything)
    with client_of(config) as client:
        done = client.redrive(run, groups or [], everything)
    if as_json:
        print_json(done)
    else:
        _tell(done)
    if done.refused and not done.groups:
        raise typer.Exit(1)


@app.command("discard")
def discard(
    run: RunName,
    groups: Groups = None,
    letters: Annotated[
        list[str] | None, typer.Option("--letter", help="Id of a letter; its group's others go with it. Repeatable.")
    ] = None,
    everything: All = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters and what is kept of their groups; the drops stay counted."""
    _check_choice(bool(groups or letters), everything)
    with client_of(config) as client:
        gone = client.discard(run, groups or [], letters or [], everything)
    if as_json:
        print_json(gone)
    else:
        note(f"deleted {gone.letters} dead letters")


def _check_choice(some: bool, everything: bool) -> None:
    if some == everything:
        raise SluiceError("say which: numbers of groups, as `sluice dead list` shows them, or --all")


def _tell(done: Redriven) -> None:
    if done.groups:
        note(f"sent again: group {', '.join(map(str, done.groups))}")
    for what, why in done.refused.items():
        note(f"not sent: {what}: {why}")
    if not done.groups and not done.refused:
        note("there was nothing to send again")


def _view(found: DeadEntry) -> RenderableType:
    facts: list[tuple[str, Any]] = [
        ("stream", found.stream),
        ("group", found.group_id),
        ("given up", clock(found.time)),
        ("deliveries", found.deliveries),
        ("error", found.error),
        ("size", size(found.bytes)),
        ("send again", "yes" if found.redrivable else f"no: {found.why_not}"),
    ]
    views: list[RenderableType] = [table(("letter", found.id), facts), ""]
    if found.entry is not None:
        return Group(*views, table(("field", "value"), list(found.entry.items())))
    return Group(*views, Text(f"the entry does not decode: {found.decode_error}"), Text(found.hex))
