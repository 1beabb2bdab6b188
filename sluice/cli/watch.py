"""A run that is under way -> a live table, one line a step, or one JSON object a line, until it runs or has ended."""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from shared.errors import SluiceError
from sluice.answers import Evaluation, Run, Step
from sluice.cli.output import ERRORS, OUT, print_json, table
from sluice.client import Client, GatewayError, GatewayUnreachable

T = TypeVar("T")

POLL_S = 0.5
GATEWAY_PATIENCE_S = 60.0
"""How long the gateway may be away, as while it restarts, before watching ends."""
PASSING = (502, 503, 504)
"""What the gateway answers while Redis or the router is away."""
ROLLED_BACK_TO = "rolled_back_to"
"""The metric of a step that went back: the version that it has the weights of."""
LIVE_ROWS = 15
MOST_LINES = 100
COLUMNS = (
    "step",
    "reward",
    "eval",
    "loss",
    "accuracy",
    "margin",
    "tokens/s",
    "version",
    "back to",
    "staleness",
    "seconds",
)


class View(Protocol):
    """Where the progress of a run is shown."""

    def update(self, run: Run, new_steps: list[Step], new_evaluations: list[Evaluation]) -> None: ...


def follow_start(client: Client, run: str) -> Run:
    """Wait until the run is running; SluiceError with the reason if it fails."""
    told = ""
    with ERRORS.status(f"{run}: queued") as spinner:
        while True:
            record = patiently(lambda: client.run(run))
            if record.state == "failed":
                raise SluiceError(f"run {run} failed: {record.reason}")
            if record.state not in ("queued", "starting"):
                return record
            ready = f"; ready: {', '.join(record.services)}" if record.services else ""
            spinner.update(f"{run}: {record.state}{ready}")
            if not ERRORS.is_terminal and told != (told := f"{run}: {record.state}{ready}"):
                ERRORS.print(told, markup=False)
            time.sleep(POLL_S)


def follow_to_end(client: Client, run: str, as_json: bool) -> Run:
    """Show the run's progress until it has ended, and return how it ended."""
    with _view(as_json) as view:
        after, seen = 0, set[tuple[int, str]]()
        while True:
            record = patiently(lambda: client.run(run))
            steps = patiently(lambda after=after: client.steps(run, after))
            fresh = [e for e in record.evaluations if e.complete and (e.version, e.dataset) not in seen]
            view.update(record, steps, fresh)
            after = steps[-1].step if steps else after
            seen |= {(e.version, e.dataset) for e in fresh}
            if record.has_ended:
                return record
            time.sleep(POLL_S)


class JsonLines:
    """Every step and evaluation as one JSON object a line; the run, where its state changes."""

    def __init__(self) -> None:
        self._state = ""

    def update(self, run: Run, new_steps: list[Step], new_evaluations: list[Evaluation]) -> None:
        for step in new_steps:
            print_json({"type": "step", **step.model_dump(mode="json")}, indent=None)
        for evaluation in new_evaluations:
            print_json({"type": "evaluation", **evaluation.model_dump(mode="json")}, indent=None)
        if run.state != self._state:
            self._state = run.state
            print_json({"type": "run", **run.model_dump(mode="json", exclude={"settings"})}, indent=None)


class Lines:
    """Lines for a pipe or a log file: one a step, or every so many steps of a long run."""

    def update(self, run: Run, new_steps: list[Step], new_evaluations: list[Evaluation]) -> None:
        for evaluation in new_evaluations:
            dropped = f"; {evaluation.dropped} of {evaluation.groups} rows dropped" if evaluation.dropped else ""
            version, mean = evaluation.version, f"{evaluation.reward_mean:.4f}"
            _line(f"evaluation of version {version} on {evaluation.dataset}: {mean}{dropped}")
        every = max(1, run.steps // MOST_LINES)
        for step in new_steps:
            if step.step % every == 0 or step.step == run.steps or ROLLED_BACK_TO in step.metrics:
                cells = zip(COLUMNS[1:], row(step, None)[1:], strict=True)
                told = "  ".join(f"{name} {_short(value)}" for name, value in cells if value is not None)
                _line(f"step {step.step}/{run.steps}  {told}")


class LiveTable:
    """The last steps, or the evaluation of a run without any, in a table that is drawn anew, under a progress bar."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rows: list[tuple[Any, ...]] = []
        self._accuracy: dict[int, float] = {}

    def update(self, run: Run, new_steps: list[Step], new_evaluations: list[Evaluation]) -> None:
        self._accuracy |= {evaluation.version: evaluation.reward_mean for evaluation in new_evaluations}
        self._rows += [row(step, self._accuracy.get(step.weight_version)) for step in new_steps]
        self._rows = self._rows[-LIVE_ROWS:]
        body = table(*filled(self._rows)) if run.steps else evaluation_table(run)
        self._live.update(Group(self._head(run), "", body))

    def _head(self, run: Run) -> Table:
        head = Table.grid(padding=(0, 2))
        accuracy = f"eval {self._accuracy[max(self._accuracy)]:.3f}" if self._accuracy and run.steps else ""
        done, total = progress(run)
        bar = ProgressBar(total=total or None, completed=done, width=30)
        head.add_row(f"[bold]{run.run}[/]", run.state, bar, f"{done}/{total}", accuracy)
        return head


def progress(run: Run) -> tuple[int, int]:
    """Steps that are done and those of the run; of a run without any the rows of its evaluation."""
    if run.steps:
        return run.step, run.steps
    return sum(e.done for e in run.evaluations), sum(e.groups for e in run.evaluations)


def evaluation_table(run: Run) -> Table:
    """What each version of the run made of each held-out dataset."""
    rows = [(e.version, e.dataset, f"{e.done}/{e.groups}", e.dropped, e.reward_mean) for e in run.evaluations]
    return table(("version", "evaluation", "groups", "dropped", "mean reward"), rows)


def row(step: Step, accuracy: float | None) -> tuple[Any, ...]:
    """The cells of one step, in the order of COLUMNS; None where a run of this kind has no such number."""
    m = step.metrics
    return (
        step.step,
        m.get("reward_mean"),
        accuracy,
        m.get("loss"),
        m.get("preference_accuracy"),
        m.get("preference_margin"),
        m.get("tokens_per_second"),
        step.weight_version,
        m.get(ROLLED_BACK_TO),
        m.get("staleness_max"),
        m.get("seconds_total"),
    )


def filled(rows: list[tuple[Any, ...]]) -> tuple[list[str], list[list[Any]]]:
    """The columns in which a row has a number, and the rows cut down to them."""
    kept = [place for place in range(len(COLUMNS)) if not rows or any(row[place] is not None for row in rows)]
    return [COLUMNS[place] for place in kept], [[row[place] for place in kept] for row in rows]


@contextlib.contextmanager
def _view(as_json: bool) -> Generator[View]:
    if as_json:
        yield JsonLines()
    elif OUT.is_terminal:
        with Live(console=OUT, refresh_per_second=4) as live:
            yield LiveTable(live)
    else:
        yield Lines()


def patiently(ask: Callable[[], T]) -> T:
    """Ask again while the gateway is away, for GATEWAY_PATIENCE_S seconds."""
    until = time.monotonic() + GATEWAY_PATIENCE_S
    while True:
        try:
            return ask()
        except (GatewayUnreachable, GatewayError) as error:
            passing = isinstance(error, GatewayUnreachable) or error.status in PASSING
            if not passing or time.monotonic() > until:
                raise
            time.sleep(POLL_S)


def _line(text: str) -> None:
    OUT.print(text, markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
