"""A whole deployment in a folder of its own, started as `sluice up -d` starts it, for tests that need all of it."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.free_ports import free_port, free_ports
from deploy import embedded_redis
from deploy.ports import bind_error
from deploy.process import birth
from deploy.services import ports_of
from deploy.supervisor_state import read_state
from services.trainer.tiny_model import write_tiny_model
from shared.deployment import Deployment, load_deployment
from sluice.cli.down import stop
from sluice.cli.up import start_detached
from sluice.client import Client
from sluice.connect import connect


@dataclass(frozen=True, slots=True)
class Stack:
    """A deployment that is up, and what a test may ask of it."""

    deployment: Deployment
    client: Client
    home: Path
    model: Path
    redis_url: str

    @property
    def engine_url(self) -> str:
        """Of the SGLang server itself, past the router."""
        return f"http://127.0.0.1:{self.deployment.engine.port}"

    def processes(self) -> dict[str, int]:
        """Process ids of the supervisor and its services."""
        state = read_state(self.home)
        assert state is not None
        return {"supervisor": state.pid, **{name: int(s["pid"]) for name, s in state.services.items()}}


@contextmanager
def running_stack(home: Path) -> Generator[Stack]:
    """Everything from Redis to the trainer; afterwards no process and no port may be left."""
    model = home / "model"
    write_tiny_model(model, seed=1)
    deployment = load_deployment(environ={}, overrides={**free_ports(), "paths": {"home": home}})
    start_detached(deployment, home)
    try:
        with connect(deployment) as client:
            url = embedded_redis.url(home, deployment.redis.port)
            stack = Stack(deployment, client, home, model, url)
            processes = {name: (pid, birth(pid)) for name, pid in stack.processes().items()}
            yield stack
    finally:
        stop(home)
    assert {name: pid for name, (pid, born) in processes.items() if birth(pid) == born} == {}
    taken = [use for uses in ports_of(deployment).values() for use in uses if bind_error(use.host, use.port)]
    assert taken == []


@contextmanager
def remote_reward() -> Generator[str]:
    """The server of letters_server.py on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "letters_server:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=Path(__file__).parent)
    try:
        transport = httpx.HTTPTransport(retries=8)  # waits 0, 0.5, 1, 2, ... seconds between tries
        with httpx.Client(transport=transport, timeout=10) as client:
            assert client.get(f"http://127.0.0.1:{port}/health").is_success
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)
