"""`sluice run ...`: runs started from a TOML file, watched, stopped, listed and looked into."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from shared.deployment import run_environment
from shared.errors import SluiceError
from shared.run_settings import RunSettings
from shared.settings import from_assignments, merge, read_toml, validate
from sluice.answers import Run, Sample
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import clock, note, print_json, show, table
from sluice.cli.watch import follow_start, follow_to_end

app = typer.Typer(help="Runs: one training each, from a TOML file.", no_args_is_help=True)

SHOWN_CHARACTERS = 240

SetRun = Annotated[
    list[str] | None, typer.Option("--set", help="One setting of the run, such as trainer.steps=50; repeatable.")
]


@app.command("start")
def start(
    file: Annotated[Path, typer.Argument(help="The run's settings, TOML.")],
    assignments: SetRun = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run is queued.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Go on to its end, as `run watch` does.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a run and wait until it runs. Exit code 1 if it fails to start."""
    settings = merge(read_toml(file), run_environment(), from_assignments(assignments or []))
    path = validate(RunSettings, settings, str(file)).model.path
    settings = merge(settings, {"model": {"path": _absolute(path)}})
    with client_of(config) as client:
        run = client.start_run(settings)
        if not detach:
            run = follow_start(client, run.run)
        if watch_it and not detach:
            _finish(follow_to_end(client, run.run, as_json), as_json)
            return
    if as_json:
        print_json(run)
    else:
        note(f"run [bold]{run.run}[/] is {run.state}; follow it with `sluice run watch {run.run}`")


def _absolute(path: str) -> str:
    """A local folder as its whole path, for the services may run elsewhere; anything else as it is."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


@app.command("watch")
def watch(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Follow a run to its end; with --json one object a line. Exit code 1 if it fails. Ctrl-C leaves it running."""
    with client_of(config) as client:
        _finish(follow_to_end(client, name, as_json), as_json)


@app.command("stop")
def stop(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Stop a run after its step in hand, with a checkpoint and an export."""
    with client_of(config) as client:
        run = client.stop_run(name)
    if as_json:
        print_json(run)
    else:
        note(f"run {run.run} is {run.state}")


@app.command("list")
def list_(config: Config = None, as_json: AsJson = False) -> None:
    """List the runs, oldest first."""
    with client_of(config) as client:
        found = client.runs()
    rows = [(r.run, r.kind, r.state, f"{r.step}/{r.steps}", clock(r.created), clock(r.ended), r.reason) for r in found]
    view = table(("run", "kind", "state", "steps", "created", "ended", "reason"), rows)
    show(as_json, {"runs": found}, view if found else "no runs; start one with `sluice run start RUN.toml`")


@app.command("show")
def show_(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Show a run: progress, counters, evaluations, the metrics of its last step."""
    with client_of(config) as client:
        run = client.run(name)
    facts = [(k, v) for k, v in _facts(run).items() if v not in (None, "")]
    evaluations = [(e.version, e.dataset, f"{e.done}/{e.groups}", e.dropped, e.reward_mean) for e in run.evaluations]
    parts = [
        table(("run", run.run), facts),
        "",
        table(("version", "evaluation", "groups", "dropped", "mean reward"), evaluations),
        "",
        table(("counter", "value"), sorted(run.counters.items())),
        "",
        table(("metric", "value"), sorted(run.metrics.items())),
    ]
    show(as_json, run, Group(*parts))


@app.command("samples")
def samples(
    name: str,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most attempts to show.")] = 10,
    group: Annotated[int | None, typer.Option("--group", help="Only the attempts of this group.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show scored attempts of a run, newest groups first."""
    with client_of(config) as client:
        found = client.samples(name, limit, group)
    rows = [
        (f"{s.group_id}.{s.attempt}", _versions(s), _begin(str(s.prompt)), _begin(s.text), s.label, s.reward)
        for s in found
    ]
    view = table(("attempt", "version", "prompt", "answer", "label", "reward"), rows)
    show(as_json, {"samples": found}, view if found else "no samples yet")


def _finish(run: Run, as_json: bool) -> None:
    if run.state == "failed":
        raise SluiceError(f"run {run.run} failed: {run.reason}")
    if not as_json:
        note(f"run {run.run} {run.state} at step {run.step} of {run.steps}")


def _facts(run: Run) -> dict[str, object]:
    return {
        "kind": run.kind,
        "state": run.state,
        "reason": run.reason,
        "step": f"{run.step} of {run.steps}",
        "weight version": run.weight_version,
        "created": clock(run.created),
        "started": clock(run.started),
        "ended": clock(run.ended),
        "services": ", ".join(run.services),
    }


def _versions(sample: Sample) -> str:
    return ",".join(str(version) for version, _ in sample.weight_versions)


def _begin(text: str) -> str:
    """The beginning of a text that may be long; --json gives all of it."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
