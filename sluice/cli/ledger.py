"""`sluice ledger`: what became of every group and token of a run, and the proof that it balances."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from shared.ledger_answers import LedgerAnswer
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import clock, show, table

DEADLINE_S = 600.0
"""A proof reads all that is under way."""
MOST_ROWS = 20
"""Of workers or versions; --json has all."""
COLUMNS = ("generated", "trained", "evaluated", "dropped", "undecided")


def ledger(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    verify: Annotated[bool, typer.Option("--verify", help="Prove it from Redis and the newest checkpoint.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show where every group and token of a run is. Exit code 1 if something does not balance."""
    with client_of(config, DEADLINE_S) as client:
        found = client.ledger(run, verify)
    show(as_json, found, Group(*_views(found)))
    if not found.balanced:
        raise typer.Exit(1)


def _views(found: LedgerAnswer) -> list[RenderableType]:
    groups, tokens = found.groups, found.tokens
    rows: list[tuple[str, int]] = [
        ("released", groups.released),
        ("  of them evaluations", groups.evaluations),
        ("trained", groups.trained),
        ("evaluated", groups.evaluated),
        *((f"dropped: {reason}", count) for reason, count in groups.dropped.items()),
        ("dead", groups.dead),
        *((f"pending: {place}", count) for place, count in groups.pending.items()),
        ("lost", groups.lost),
        ("twice", groups.twice),
    ]
    head = f"run {found.run}, {found.state}, at {clock(found.time)}: {found.step} steps committed"
    tables: dict[str, dict[str, dict[str, int]]] = {
        "dataset": tokens.dataset,
        "worker": tokens.worker,
        "version": tokens.version,
    }
    views: list[RenderableType] = [head, "", table(("groups", "count"), rows)]
    for kind, by_name in tables.items():
        views += ["", _tokens(kind, by_name)]
        if len(by_name) > MOST_ROWS:
            views.append(f"... the last {MOST_ROWS} of {len(by_name)}; --json has all")
    return [*views, "", *_verdict(found)]


def _tokens(kind: str, by_name: dict[str, dict[str, int]]) -> RenderableType:
    rows = [(name, *_cells(states)) for name, states in list(by_name.items())[-MOST_ROWS:]]
    totals = [sum(row[i] for row in (_cells(states) for states in by_name.values())) for i in range(len(COLUMNS))]
    return table((f"tokens by {kind}", *COLUMNS), [*rows, ("all", *totals)], fixed=COLUMNS)


def _cells(states: dict[str, int]) -> list[int]:
    dropped = sum(count for state, count in states.items() if state.startswith("dropped:"))
    return [dropped if column == "dropped" else states.get(column, 0) for column in COLUMNS]


def _verdict(found: LedgerAnswer) -> list[Any]:
    if not found.balanced:
        return ["[bold red]it does not balance[/]", *(f"  {problem}" for problem in found.problems)]
    if not found.verified:
        return ["nothing is lost and nothing is twice; --verify proves the rest"]
    return ["[green]it balances[/]", *(f"  {check}" for check in found.checks)]
