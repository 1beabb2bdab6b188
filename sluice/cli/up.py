"""`sluice up`: the services of a deployment started on this machine, in the foreground or detached."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.keep_running import Condition, last_lines
from deploy.ports import check_ports
from deploy.services import ports_of, settings_environment
from deploy.supervisor import supervise
from deploy.supervisor_state import SupervisorState, only_one, read_state
from shared.deployment import Deployment
from shared.errors import SluiceError
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import ERRORS, note, print_json
from sluice.connect import key_file

START_DEADLINE_S = 300.0
POLL_S = 0.1
COLOURS = {"healthy": "green", "failed": "red", "restarting": "yellow"}


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is healthy.")] = False,
    config: Config = None,
    assignments: SetDeployment = None,
    as_json: AsJson = False,
) -> None:
    """Start the services of this machine and keep them running."""
    deployment = deployment_of(config, assignments)
    home = deployment.paths.home.absolute()
    if detach:
        start_detached(deployment, home)
        _announce(deployment, home, as_json)
    else:
        _run_here(deployment, home, as_json)


def _run_here(deployment: Deployment, home: Path, as_json: bool) -> None:
    """Supervise until told to stop; exit code 130 if that came before everything was healthy."""
    ready = False

    def announce() -> None:
        nonlocal ready
        ready = True
        _announce(deployment, home, as_json)

    asyncio.run(supervise(deployment, _report, announce))
    if not ready:
        raise typer.Exit(130)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Generator[None]:
    """SIGTERM ends a start as Ctrl-C does: what was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_detached(deployment: Deployment, home: Path, deadline_s: float = START_DEADLINE_S) -> SupervisorState:
    """Start a supervisor that outlives this process; its state once everything is healthy.

    Raises:
        SluiceError: it runs already, a port is taken, or a service cannot start; then nothing is left running.
    """
    with only_one(home):
        _check_ports_unless_left_over(deployment, home)
    log = home / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "deploy.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings_environment(deployment)},
            start_new_session=True,
        )
    try:
        with _terminated_as_interrupted(), ERRORS.status("starting") as spinner:
            state = _until_running(supervisor, home, log, deadline_s, spinner)
    except BaseException:
        # Ctrl-C or a failure while it starts: nothing half-started stays behind
        supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(60)
        raise
    supervisor.returncode = 0  # it outlives this process, which therefore never waits for it
    return state


def _until_running(
    supervisor: "subprocess.Popen[bytes]", home: Path, log: Path, deadline_s: float, spinner: Any
) -> SupervisorState:
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        ended = supervisor.poll() is not None
        state = read_state(home)
        if state is not None and state.pid == supervisor.pid:
            if state.phase == "running":
                return state
            if state.failure and ended:
                raise SluiceError(state.failure)
            waiting = [name for name, service in state.services.items() if service["phase"] != "healthy"]
            spinner.update(f"starting: {', '.join(waiting) or 'services'}")
        if ended:
            raise SluiceError("\n".join(last_lines(log, 3)) or f"the supervisor ended; see {log}")
        time.sleep(POLL_S)
    raise SluiceError(f"not everything was healthy within {deadline_s:g} s; see `sluice logs`")


def _check_ports_unless_left_over(deployment: Deployment, home: Path) -> None:
    """Orphans of a killed supervisor may still hold the ports; the new one ends them before it checks."""
    state = read_state(home)
    if state is None or not state.leftovers():
        check_ports(use for ports in ports_of(deployment).values() for use in ports)


def _report(condition: Condition) -> None:
    colour = COLOURS.get(condition.phase, "dim")
    reason = f"  {condition.reason}" if condition.reason and condition.phase in ("failed", "restarting") else ""
    ERRORS.print(f"{time.strftime('%H:%M:%S')}  {condition.name:<10} [{colour}]{condition.phase}[/]", end="")
    ERRORS.print(reason, markup=False)


def _announce(deployment: Deployment, home: Path, as_json: bool) -> None:
    state = read_state(home)
    assert state is not None, "a supervisor that is ready has written its state"
    if as_json:
        key = str(key_file(deployment).absolute())
        print_json({"gateway": state.gateway_url, "api_key_file": key, "home": str(home), "pid": state.pid})
        return
    note(f"[bold green]Sluice is up[/] at {state.gateway_url}; the API key is in {key_file(deployment)}")
    note("next: `sluice dataset push FILE --name NAME`, then `sluice run start RUN.toml`")
