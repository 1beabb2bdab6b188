"""What can be said of an engine's process without SGLang; test_engine.py has the rest."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from deploy.process import birth
from services.rollout.engine_arguments import EnginePlan
from services.rollout.launch_engine import CPU_SHIM, ROOT, EngineDied, EngineProcess, check_port
from tests.conftest import until


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineDied, match=f"cannot listen on 127.0.0.1:{port}"):
            check_port("127.0.0.1", port)


def test_a_free_port_is_fine() -> None:
    check_port("127.0.0.1", free_port())


async def test_an_engine_is_started_by_the_command_of_the_deployment_with_the_same_arguments(tmp_path: Path) -> None:
    plan = EnginePlan("127.0.0.1", free_port(), "cpu", {"tp_size": 2})
    say = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "wrapped"]
    engine = EngineProcess(plan, tmp_path / "engine.log", say)
    with pytest.raises(EngineDied, match=re.escape(f"['wrapped', '{os.getpid()}', '{{\"tp_size\":2}}']")):
        await engine.wait_healthy(30)
    engine.stop()
    await engine.calls.close()


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    plan = EnginePlan("127.0.0.1", free_port(), "cpu", {})
    with pytest.raises(EngineDied, match=r"cannot be started by 'numactl-typo'.*correct engine.command"):
        EngineProcess(plan, tmp_path / "engine.log", ["numactl-typo"])


SERVER_WITH_A_CHILD = """
import multiprocessing, sys
CODE = "import signal; print('up', flush=True); signal.pause()"
from services.rollout import engine_server
sys.modules["__main__"].__spec__ = engine_server.__spec__
child = multiprocessing.get_context("spawn").Process(target=exec, args=(CODE,))
child.start()
print(child.pid, flush=True)
child.join()
"""
"""As SGLang starts its scheduler, which then imports for a long time."""


async def test_what_a_killed_server_has_started_ends_with_it() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{CPU_SHIM}{os.pathsep}{ROOT}"}  # the child imports SGLang
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER_WITH_A_CHILD, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert server.stdout is not None
    words = {(await server.stdout.readline()).decode().strip() for _ in range(2)}
    child = int(*(words - {"up"}))
    server.kill()

    async def gone() -> bool:
        return not birth(child)

    try:
        await until(gone)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        await server.communicate()
