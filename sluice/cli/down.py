"""`sluice down`: the supervisor of a home and all its services ended."""

import asyncio
import os
import signal
import time
from pathlib import Path

from deploy.stop_leftovers import stop_leftovers
from deploy.supervisor_state import SupervisorState, read_state
from shared.errors import SluiceError
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import ERRORS, note, print_json

STOP_DEADLINE_S = 120.0
POLL_S = 0.1


def down(config: Config = None, assignments: SetDeployment = None, as_json: AsJson = False) -> None:
    """Stop the services of this machine; a run goes on where it was at the next `sluice up`."""
    home = deployment_of(config, assignments).paths.home.absolute()
    outcome = stop(home)
    if as_json:
        print_json({"home": str(home), "outcome": outcome})
    else:
        note({"stopped": "Sluice is down", "not running": f"Sluice is not running in {home}"}[outcome])


def stop(home: Path, deadline_s: float = STOP_DEADLINE_S) -> str:
    """Stop what runs in a home: "stopped", or "not running" if there was nothing. SluiceError if it does not end."""
    state = read_state(home)
    if state is None or not state.alive:
        return "stopped" if asyncio.run(stop_leftovers(home)) else "not running"
    os.kill(state.pid, signal.SIGTERM)
    until = time.monotonic() + deadline_s
    with ERRORS.status("stopping") as spinner:
        while state.alive:
            if time.monotonic() > until:
                raise SluiceError(f"process {state.pid} did not stop within {deadline_s:g} s; see `sluice logs`")
            spinner.update(f"stopping: {', '.join(_running(home)) or 'supervisor'}")
            time.sleep(POLL_S)
    return "stopped"


def _running(home: Path) -> list[str]:
    state: SupervisorState | None = read_state(home)
    return [name for name, service in state.services.items() if service["phase"] == "stopping"] if state else []
