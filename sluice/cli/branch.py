"""`sluice branch`: a new run that goes on from a step of another one, with changed settings."""

from typing import Annotated

import typer

from shared.errors import SluiceError
from shared.settings import from_assignments
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import note, print_json
from sluice.cli.watch import follow_start, follow_to_end


def branch(
    run: Annotated[str, typer.Argument(help="The run to go on from; it may be running or have ended.")],
    step: Annotated[int, typer.Option("--from", min=0, help="The step after which the new run begins.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new run; RUN-STEP if not given.")] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting that differs from RUN's, such as trainer.learning_rate=1e-5; repeatable."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run is queued.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Go on to its end, as `run watch` does.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a run that goes on from a step of RUN, and wait until it runs. RUN itself is not touched."""
    changes = from_assignments(assignments or [])
    with client_of(config) as client:
        new = client.branch_run(run, step, name, changes)
        if not detach:
            new = follow_start(client, new.run)
            if watch_it:
                new = follow_to_end(client, new.run, as_json)
    if new.state == "failed":
        raise SluiceError(f"run {new.run} failed: {new.reason}")
    if not as_json:
        note(f"run [bold]{new.run}[/] goes on from step {step} of {run} and is {new.state}")
    elif detach or not watch_it:
        print_json(new)
