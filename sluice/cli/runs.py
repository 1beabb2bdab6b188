"""`sluice run ...`: runs started from a TOML file, watched, stopped, listed and looked into."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from shared.deployment import run_environment
from shared.errors import SluiceError
from shared.run_settings import RunSettings
from shared.settings import Layer, from_assignments, merge, read_toml, validate_layers
from sluice.answers import Run, Sample
from sluice.cli.events import events
from sluice.cli.options import AsJson, Config, client_of, deployment_of
from sluice.cli.output import begin, chat_text, clock, note, print_json, short_clock, show, table
from sluice.cli.watch import evaluation_table, follow_start, follow_to_end

app = typer.Typer(help="Runs: one training each, from a TOML file.", no_args_is_help=True)

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
    layers = [Layer(str(file), read_toml(file)), run_environment(), Layer("--set", from_assignments(assignments or []))]
    path = validate_layers(RunSettings, layers).model.path
    settings = merge(*(layer.tree for layer in layers), {"model": {"path": _absolute(path)}})
    with client_of(config) as client:
        run = client.start_run(settings)
        if not detach:
            run = follow_start(client, run.run)
        if watch_it and not detach:
            _finish(follow_to_end(client, run.run, as_json), as_json, config)
            return
    if as_json:
        print_json(run)
    else:
        note(f"run [bold]{run.run}[/] is {run.state}; follow it with `sluice run watch {run.run}`")


def _absolute(path: str) -> str:
    """A local folder as its whole path, for the services may run elsewhere; anything else as it is."""
    local = os.path.expanduser(path)
    return os.path.abspath(local) if os.path.exists(local) else path


@app.command("watch")
def watch(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Follow a run to its end; with --json one object a line. Exit code 1 if it fails. Ctrl-C leaves it running."""
    with client_of(config) as client:
        _finish(follow_to_end(client, name, as_json), as_json, config)


app.command("events")(events)


@app.command("stop")
def stop(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Stop a run after its step in hand, with a checkpoint and an export."""
    with client_of(config) as client:
        run = client.stop_run(name)
    if as_json:
        print_json(run)
    else:
        note(f"run {run.run} is {run.state}")


@app.command("delete")
def delete(
    name: str,
    files: Annotated[bool, typer.Option("--files", help="Its checkpoints, export and archive too.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Delete a run that has ended: what Redis keeps of it, and with --files its folder."""
    with client_of(config) as client:
        client.delete_run(name, files)
    if as_json:
        print_json({"deleted": name})
    else:
        note(f"deleted {name}{'' if files else '; its folder stays, --files deletes it too'}")


@app.command("list")
def list_(config: Config = None, as_json: AsJson = False) -> None:
    """List the runs, oldest first."""
    with client_of(config) as client:
        found = client.runs()
    steps = [f"{r.step}/{r.steps}" if r.steps else "-" for r in found]
    rows = [(r.run, r.kind, r.state, s, short_clock(r.created), r.reason) for r, s in zip(found, steps, strict=True)]
    columns = ("run", "kind", "state", "steps", "created", "reason")
    view = table(columns, rows, fixed=columns[1:-1])
    show(as_json, {"runs": found}, view if found else "no runs; start one with `sluice run start RUN.toml`")


@app.command("show")
def show_(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Show a run: progress, counters, evaluations, the metrics of its last step."""
    with client_of(config) as client:
        run = client.run(name)
    facts = [(k, v) for k, v in _facts(run).items() if v not in (None, "")]
    parts = [
        table(("run", run.run), facts),
        *(["", evaluation_table(run)] if run.evaluations else []),
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
    evaluations: Annotated[bool, typer.Option("--evaluations", help="Those of evaluations instead.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show scored attempts of a run, newest groups first: of training groups, or of evaluations."""
    with client_of(config) as client:
        found = client.samples(name, limit, group, evaluations if group is None else None)
    rows = [
        (
            f"{s.group_id}.{s.attempt}",
            f"{s.kind} {s.preference or ''}".rstrip(),
            _versions(s),
            begin(chat_text(s.prompt)),
            begin(s.text),
            s.label,
            s.reward,
        )
        for s in found
    ]
    columns = ("attempt", "kind", "version", "prompt", "answer", "label", "reward")
    view = table(columns, rows, fixed=("attempt", "kind", "reward"))
    show(as_json, {"samples": found}, view if found else "no samples yet")


def _finish(run: Run, as_json: bool, config: Path | None) -> None:
    if run.state == "failed":
        raise SluiceError(f"run {run.run} failed: {run.reason}")
    if as_json:
        return
    note(f"run {run.run} {run.state}{f' at step {run.step} of {run.steps}' if run.steps else ''}")
    deployment = deployment_of(config)
    export = deployment.runs_folder / run.run / "export"
    if export.exists():
        note(f"the model is in {export}; ask it with: sluice chat {export}")
    elif deployment.gateway.url and run.step and not run.reason:
        note(f"the model is in runs/{run.run}/export, in the home of the deployment on the trainer's machine")


def _facts(run: Run) -> dict[str, object]:
    return {
        "kind": run.kind,
        "state": run.state,
        "reason": run.reason,
        "held back": run.held_back,
        "step": f"{run.step} of {run.steps}" if run.steps else "none: it evaluates the initial model",
        "weight version": run.weight_version,
        "created": clock(run.created),
        "started": clock(run.started),
        "ended": clock(run.ended),
        "services": ", ".join(run.services),
    }


def _versions(sample: Sample) -> str:
    return ",".join(str(version) for version, _ in sample.weight_versions)
