"""`sluice up` and `sluice down` with all the real services: everything healthy, then nothing left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from deploy.ports import bind_error
from deploy.process import birth, descendants
from deploy.supervisor_state import SupervisorState, read_state
from tests.conftest import until
from tests.sluice.conftest import Sluice

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-c", "from sluice.cli.main import run; run()")
SETTINGS = """
[redis]
port = {0}
[gateway]
port = {1}
[router]
port = {2}
metrics_port = {3}
[engine]
port = {4}
[health]
trainer_port = {5}
rollout_port = {6}
reward_port = {7}
engine_port = {8}
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(sluice: Sluice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sluice]:
    """`sluice` in a folder whose settings choose free ports; whatever it starts is stopped."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "sluice.toml").write_text(SETTINGS.format(*(free_port() for _ in range(9))))
    yield sluice
    assert sluice("down").code == 0


def state(folder: Path) -> SupervisorState:
    found = read_state(folder / ".sluice")
    assert found is not None
    return found


def everything(folder: Path) -> dict[int, str]:
    """The supervisor's process and all below it."""
    supervisor = state(folder).pid
    return {supervisor: birth(supervisor), **descendants(supervisor)}


def assert_nothing_is_left(folder: Path, processes: dict[int, str]) -> None:
    assert [pid for pid, born in processes.items() if birth(pid) == born] == []
    assert [port for port in state(folder).ports.values() if bind_error("127.0.0.1", port)] == []


async def test_up_starts_everything_and_down_leaves_no_process_and_no_port(deployment: Sluice, tmp_path: Path) -> None:
    port = free_port()
    up = deployment("up", "--detach", "--json", "--set", f"gateway.port={port}")
    assert up.code == 0, up.err
    assert json.loads(up.out)["gateway"] == state(tmp_path).gateway_url == f"http://127.0.0.1:{port}"
    assert deployment("run", "list").code == 0  # asks that port, though the settings name another one
    assert deployment("status").code == 0
    assert json.loads(deployment("status", "--json").out)["gateway"]["router"]["reachable"]

    again = deployment("up", "--detach")
    assert again.code == 1
    assert "runs already" in again.err

    os.kill(state(tmp_path).services["reward"]["pid"], signal.SIGKILL)

    async def is_back() -> bool:
        reward = state(tmp_path).services["reward"]
        return reward["restarts"] == 1 and reward["phase"] == "healthy"

    await until(is_back, 60)

    processes = everything(tmp_path)
    assert len(processes) >= 8
    assert deployment("down").code == 0
    assert_nothing_is_left(tmp_path, processes)
    assert deployment("status").code == 1
    assert "Sluice is not running here" in deployment("run", "list").err


async def test_ctrl_c_in_the_foreground_leaves_no_process_and_no_port(deployment: Sluice, tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*PROGRAM, "up"], cwd=tmp_path, stdout=output, stderr=output)  # noqa: ASYNC220

    async def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return "Sluice is up" in log.read_text()

    await until(is_up, 120)
    processes = everything(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert_nothing_is_left(tmp_path, processes)


def test_a_service_that_cannot_start_stops_all_and_is_told_with_its_reason(deployment: Sluice, tmp_path: Path) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    up = deployment("up", "--detach", "--set", f"redis.url={nowhere}", "--set", "redis.connect_deadline_s=1")
    assert up.code == 1
    assert "cannot start: it ended with exit code 1" in up.err
    assert "did not answer within 1 s" in up.err
    assert state(tmp_path).phase == "failed"
    assert_nothing_is_left(tmp_path, {})
