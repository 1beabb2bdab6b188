"""Where engines are with a weight version -> a table of them."""

from collections.abc import Iterable

from rich.table import Table

from shared.weights_answers import EngineState
from sluice.cli.output import short_clock, table

SHORT = 12
"""Characters of a checksum that tell versions apart."""


def engine_table(engines: Iterable[EngineState]) -> Table:
    """One row an engine; what failed and what hangs says so."""
    rows = [(one.engine, _state(one), short_clock(one.since), one.seconds, one.failures, one.reason) for one in engines]
    columns = ("engine", "state", "since", "seconds", "failures", "the last one")
    return table(columns, rows, fixed=columns[1:-1])


def _state(one: EngineState) -> str:
    return one.state if one.up is not False else f"{one.state}, gone"
