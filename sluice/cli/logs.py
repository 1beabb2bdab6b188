"""`sluice logs`: the log files of a home, their ends or as they grow."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from deploy.keep_running import last_lines
from shared.errors import SluiceError
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import OUT, print_json

POLL_S = 0.3


def logs(
    service: Annotated[str | None, typer.Argument(help="One service, such as trainer; all if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each log to begin with.")] = 20,
    config: Config = None,
    assignments: SetDeployment = None,
    as_json: AsJson = False,
) -> None:
    """Show the ends of the services' logs. With --json, one object a line."""
    folder = deployment_of(config, assignments).paths.home / "logs"
    files = log_files(folder, service)
    width = max(len(file.stem) for file in files)
    offsets = {file: file.stat().st_size for file in files}
    for file in files:
        for line in last_lines(file, lines) if lines else []:
            _print(file.stem, line, width, as_json)
    while follow:
        for file in files:
            for line in _new_lines(file, offsets):
                _print(file.stem, line, width, as_json)
        time.sleep(POLL_S)


def log_files(folder: Path, service: str | None) -> list[Path]:
    """The logs of a service (`engine` means all engines), or of all; SluiceError if there are none."""
    files = sorted(folder.glob("*.log"))
    if not files:
        raise SluiceError(f"there are no logs in {folder}; run `sluice up` first")
    wanted = [file for file in files if service in (None, file.stem, file.stem.partition("-")[0])]
    if not wanted:
        known = ", ".join(file.stem for file in files)
        raise SluiceError(f"{service} is not a service with a log in {folder}; there are {known}")
    return wanted


def _new_lines(file: Path, offsets: dict[Path, int]) -> Iterator[str]:
    with file.open("rb") as log:
        log.seek(offsets[file])
        while (line := log.readline()).endswith(b"\n"):
            offsets[file] += len(line)
            yield line.decode("utf-8", "replace").rstrip("\n")


def _print(service: str, line: str, width: int, as_json: bool) -> None:
    if as_json:
        print_json({"service": service, "line": line}, indent=None)
    else:
        OUT.print(f"{service:<{width}} | {line}", markup=False, soft_wrap=True)
