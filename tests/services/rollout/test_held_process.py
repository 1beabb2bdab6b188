"""The process of a sidecar, at the end of a run."""

import asyncio
import sys
from pathlib import Path

from benchmarks.free_ports import free_port
from services.rollout.engine_arguments import EnginePlan
from services.rollout.held_process import HeldProcess
from services.rollout.launch_engine import EngineProcess, check_port
from shared.tasks import end
from tests.conftest import until

SLOW_TO_END = """
import signal, socket, sys, threading
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("listens", flush=True)
    ended.wait()
"""
"""As SGLang, which takes its time after SIGTERM."""


async def test_a_sidecar_leaves_a_run_when_the_process_that_ends_with_it_has_ended(tmp_path: Path) -> None:
    """The next run would find the port taken otherwise, and the memory."""
    port, log = free_port(), tmp_path / "log"
    held = HeldProcess(0)
    command = (sys.executable, "-c", SLOW_TO_END, str(port))
    held.engine = EngineProcess(EnginePlan("127.0.0.1", port, "cpu", {}), log, command)

    async def listens() -> bool:
        return "listens" in log.read_text("utf-8")

    await until(listens)
    leaving = asyncio.create_task(held.stop(grace_s=1))
    await asyncio.sleep(0)
    await end(leaving)
    assert leaving.cancelled()
    check_port("127.0.0.1", port)
