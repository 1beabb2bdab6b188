"""`sluice replay`: recorded steps of a run, trained again on this machine and compared bit by bit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Group

from deploy.services import children_environment
from deploy.supervisor_state import read_state
from shared.check_name import is_name
from shared.deployment import Deployment
from shared.errors import SluiceError
from sluice.cli.options import AsJson, Config, deployment_of
from sluice.cli.output import show, table

COMPUTED = (0, 1)
"""Exit codes of the replaying process after it compared all steps: equal, different."""
STOP_S = 10
NOTHING = (None, None)
"""Recorded and replayed, of a rollback."""


def replay(
    run: Annotated[str, typer.Argument(help="A run of this deployment; it may be running or have ended.")],
    first: Annotated[int, typer.Option("--from", min=1, help="The first step to train again.")],
    last: Annotated[int | None, typer.Option("--to", min=1, help="The last one; the newest if not given.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="What if: one setting of the trainer, such as trainer.learning_rate=1e-5."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Train recorded steps again, without engines, and compare metrics and weights with what was recorded.

    Runs where the trainer's packages and the run's folder are. Exit code 1 if anything differs, unless --set is given.
    """
    deployment = _deployment(config)
    if not is_name(run) or not (deployment.runs_folder / run).is_dir():
        raise SluiceError(
            f"there is no folder {deployment.runs_folder / run}; name a run of this deployment (`sluice run list`),"
            " on the machine of its trainer"
        )
    arguments = [run, "--from", str(first)] + ([] if last is None else ["--to", str(last)])
    arguments += [part for assignment in assignments or [] for part in ("--set", assignment)]
    lines = list(_lines(arguments, {**os.environ, **children_environment(deployment)}))
    verdict, steps = lines[-1], lines[:-1]
    show(as_json, {**verdict, "steps": steps}, Group(_table(steps), "", _sentence(verdict, steps)))
    if not verdict["equal"] and not assignments:
        raise typer.Exit(1)


def _deployment(config: Config) -> Deployment:
    """With the port of the Redis that runs in this home, which `sluice up --set` may have chosen."""
    deployment = deployment_of(config)
    state = read_state(deployment.paths.home)
    port = state.ports.get("redis.port") if state is not None and state.alive else None
    if port is None:
        return deployment
    return deployment.model_copy(update={"redis": deployment.redis.model_copy(update={"port": port})})


def _lines(arguments: list[str], environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What the replaying process writes; SluiceError with its reason if it could not compare."""
    command = [sys.executable, "-m", "services.trainer.replay", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for text in process.stdout:
                line = json.loads(text)
                if line.pop("type") == "error":
                    raise SluiceError(line["message"])
                yield line
            code = process.wait()
        finally:
            process.terminate()
            process.wait(STOP_S)
    if code not in COMPUTED:
        raise SluiceError(f"the replay ended with exit code {code}; its last lines are above")


def _table(steps: list[dict[str, Any]]) -> Any:
    """One row a step; numbers keep their line in 80 columns."""
    columns = ["step", "loss", "replayed", "gradient", "replayed", "from", "weights", "equal"]
    fixed = columns[:6]
    if any(step["differs"] for step in steps):
        columns.append("what differs")
    rows = [
        (
            step["step"],
            *step["metrics"].get("loss", NOTHING),
            *step["metrics"].get("grad_norm", NOTHING),
            step["source"],
            "; ".join(map(_weights, step["weights"])) or "not kept",
            "yes" if step["equal"] else "no",
            ", ".join(step["differs"]),
        )[: len(columns)]
        for step in steps
    ]
    return table(columns, rows, fixed=fixed)


def _weights(check: dict[str, Any]) -> str:
    against, largest = check["against"].removeprefix("published "), check["largest_difference"]
    if check["equal"]:
        return f"{against}: equal"
    return f"{against}: differ" + (f" by up to {largest:.3g}" if largest else "")


def _sentence(verdict: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    span, checks = f"steps {verdict['from']} to {verdict['to']} of run {verdict['run']}", verdict["weight_checks"]
    if verdict["equal"]:
        return f"{span} came out as recorded, bit for bit; records of the weights that were compared: {checks}"
    first = next(step["step"] for step in steps if not step["equal"])
    return f"{span} differ from what was recorded, first at step {first}"
