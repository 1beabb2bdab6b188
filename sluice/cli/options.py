"""Options that many commands share -> the deployment that they mean, and a client of its gateway."""

from pathlib import Path
from typing import Annotated

import typer

from shared.deployment import Deployment, load_deployment
from shared.settings import from_assignments
from sluice.client import Client
from sluice.connect import connect

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output, nothing else.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Deployment settings; ./sluice.toml if it is there.")
]
SetDeployment = Annotated[
    list[str] | None, typer.Option("--set", help="One deployment setting, such as gateway.port=8400; repeatable.")
]


def deployment_of(config: Path | None, assignments: list[str] | None = None) -> Deployment:
    """The deployment by file, environment and command line."""
    return load_deployment(config, overrides=from_assignments(assignments or []))


def client_of(config: Path | None, timeout_s: float = 30.0) -> Client:
    """A client of the deployment's gateway."""
    return connect(deployment_of(config), timeout_s)
