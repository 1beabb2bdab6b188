"""`sluice logs`: the log files of a home, their ends or as they grow, merged by time."""

import time
from pathlib import Path
from typing import Annotated

import typer

from deploy.keep_running import last_lines
from shared.errors import SluiceError
from sluice.cli.merge_logs import Line, merge_logs
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import OUT, print_json

POLL_S = 0.3
SERVER = "sglang"


def logs(
    service: Annotated[str | None, typer.Argument(help="One service, such as trainer; all if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each log to begin with.")] = 20,
    config: Config = None,
    assignments: SetDeployment = None,
    as_json: AsJson = False,
) -> None:
    """Show the ends of the services' logs, in order of time. With --json, one object a line.

    An engine has two logs: engine-0 of its sidecar, and sglang-0 of the SGLang server that the sidecar starts.
    """
    folder = deployment_of(config, assignments).paths.home / "logs"
    files = log_files(folder, service)
    offsets = {file: file.stat().st_size for file in files}
    ends = [(file.stem, last_lines(file, lines) if lines else [], file.stat().st_mtime) for file in files]
    _print_all(merge_logs(ends), files, as_json)
    while follow:
        time.sleep(POLL_S)
        files = log_files(folder, service)  # the log of an engine's server appears with its first run
        grown = [(file.stem, _new_lines(file, offsets), time.time()) for file in files]
        _print_all(merge_logs(grown), files, as_json)


def log_files(folder: Path, service: str | None) -> list[Path]:
    """The logs of a service (`engine` means all engines), or of all; SluiceError if there are none."""
    files = sorted(folder.glob("*.log"))
    if not files:
        raise SluiceError(f"there are no logs in {folder}; run `sluice up` first")
    wanted = [file for file in files if service is None or service in _names(file)]
    if not wanted:
        known = ", ".join(file.stem for file in files)
        raise SluiceError(f"{service} is not a service with a log in {folder}; there are {known}")
    return wanted


def _names(log: Path) -> tuple[str, ...]:
    """What a log can be asked for by: `sglang-0` is the server of `engine-0`."""
    family, _, index = log.stem.partition("-")
    of_engine = (f"engine-{index}", "engine") if family == SERVER else ()
    return (log.stem, family, *of_engine)


def _new_lines(file: Path, offsets: dict[Path, int]) -> list[str]:
    found: list[str] = []
    with file.open("rb") as log:
        log.seek(offsets.setdefault(file, 0))
        while (line := log.readline()).endswith(b"\n"):
            offsets[file] += len(line)
            found.append(line.decode("utf-8", "replace").rstrip("\n"))
    return found


def _print_all(lines: list[Line], files: list[Path], as_json: bool) -> None:
    width = max(len(file.stem) for file in files)
    for line in lines:
        if as_json:
            print_json({"service": line.service, "line": line.text}, indent=None)
        else:
            OUT.print(f"{line.service:<{width}} | {line.text}", markup=False, soft_wrap=True)
