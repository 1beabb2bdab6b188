"""`sluice run events`: what happened to a run, a line each, from its beginning."""

from typing import Annotated, Any

import typer
from rich.text import Text

from sluice.cli.engine_table import SHORT
from sluice.cli.options import AsJson, Config, client_of
from sluice.cli.output import OUT, clock, print_json, printable


def events(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the events of a run: states, steps, versions, evaluations, and what happened to groups and services."""
    with client_of(config) as client:
        for event in client.events(name, follow=follow):
            if as_json:
                print_json({"event": event.event, "data": event.data}, indent=None)
            else:
                OUT.print(Text(_line(event.event, event.data)), soft_wrap=True)


def _line(kind: str, data: dict[str, Any]) -> str:
    match kind:
        case "event":
            about = f"{clock(data['time'])}  {data['service']}  {data['event']}  {_pairs(data['detail'])}"
        case "step":
            reward = data["metrics"].get("reward_mean")
            mean = "" if reward is None else f", mean reward {reward:.3f}"
            about = f"step {data['step']}: version {data['weight_version']}{mean}"
        case "weights":
            about = f"weights: version {data['version']} is offered, {data['checksum'][:SHORT]}"
        case "evaluation":
            about = f"evaluation of version {data['version']}: {data['dataset']}, mean reward {data['reward_mean']:.3f}"
        case _:
            about = f"{kind}: {data['state']}{': ' + data['reason'] if data['reason'] else ''}"
    return printable(about.rstrip())


def _pairs(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items())
