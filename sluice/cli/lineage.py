"""`sluice lineage`: one group, from its prompt over its attempts to the weights that it trained."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from shared.ledger_answers import Lineage, LineageAttempt
from sluice.cli.engine_table import SHORT
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import begin, chat_text, clock, show, table


def lineage(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    group: Annotated[int, typer.Argument(min=0, help="Number of the group, as in `sluice run samples`.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show where a group came from, what was sampled and scored, and which step trained it."""
    with client_of(config) as client:
        found = client.lineage(run, group)
    show(as_json, found, Group(*_views(found)))


def _views(found: Lineage) -> list[RenderableType]:
    facts = [(name, value) for name, value in _facts(found).items() if value not in (None, "")]
    views: list[RenderableType] = [table(("group", str(found.group_id)), facts)]
    if found.attempts:
        rows = [
            (_attempt(a), a.worker, _versions(a.weight_versions), a.response_tokens, a.finish_reason, a.reward)
            for a in found.attempts
        ]
        columns = ("attempt", "worker", "versions", "tokens", "finish", "reward")
        views += ["", table(columns, rows, fixed=("attempt", "tokens", "finish", "reward"))]
        views += ["", table(("attempt", "answer"), [(_attempt(a), begin(a.text)) for a in found.attempts])]
    if found.events:
        rows = [(clock(e.time), e.service, e.event, _detail(e.detail)) for e in found.events]
        views += ["", table(("time", "service", "event", "detail"), rows, fixed=("time", "service"))]
    if found.note:
        views += ["", Text(found.note)]
    return views


def _attempt(attempt: LineageAttempt) -> str:
    """`1`, or `1 rejected` for an answer of a pair."""
    return f"{attempt.attempt} {attempt.preference or ''}".rstrip()


def _facts(found: Lineage) -> dict[str, Any]:
    trained = None if found.step is None else f"{found.step}{'' if found.step_committed else ', not committed yet'}"
    return {
        "state": f"{found.state}: {found.dropped_because}" if found.dropped_because else found.state,
        "dataset": None if found.dataset is None else f"{found.dataset}, row {found.row}",
        "prompt": None if found.prompt is None else begin(chat_text(found.prompt)),
        "label": found.label,
        "attempts": found.group_size,
        "step": trained,
        "weight version": found.weight_version,
        "checksum": found.checksum,
        "sampled by": " ".join(f"{version}:{checksum[:SHORT]}" for version, checksum in found.sampled_by.items()),
        "read from": found.source if found.attempts else None,
    }


def _versions(spans: list[tuple[int, int]]) -> str:
    """`12` for one version, `11:40 12:7` for tokens of several."""
    if len(spans) < 2:
        return ",".join(str(version) for version, _ in spans)
    return " ".join(f"{version}:{count}" for version, count in spans)


def _detail(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items() if name != "group")
