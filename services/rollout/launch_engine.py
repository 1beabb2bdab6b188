"""An engine plan -> a healthy SGLang process in a group of its own, and its end without anything left behind."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

from services.rollout.engine_arguments import EnginePlan, encode
from services.rollout.engine_calls import EngineCalls, EngineError
from shared.errors import SluiceError

ROOT = Path(__file__).resolve().parents[2]
CPU_SHIM = ROOT / "deploy" / "cpu_engine"
POLL_S = 0.1
STOP_S = 2.0
"""Seconds from SIGTERM to SIGKILL; the router was told before, so that nothing new is under way."""
KILL_S = 5.0
CHECK_S = 5.0
UNHEALTHY_S = 60.0
LOG_LINES = 5
SERVER = (sys.executable, "-m", "services.rollout.engine_server")


class EngineDied(SluiceError):
    """The engine's process ended, did not start in time, or hangs; a new one can take its place."""


class EngineProcess:
    """One life of an SGLang server."""

    was_there_before: ClassVar[bool] = False

    def __init__(self, plan: EnginePlan, log_file: Path, command: Sequence[str] = ()) -> None:
        """Start the process: `command`, or SERVER, with this process's id and the plan's arguments appended.

        Raises:
            EngineDied: something else listens on the engine's port, or there is no such command.
        """
        check_port(plan.host, plan.port)
        self.plan, self.log_file = plan, log_file
        self.incarnation = secrets.token_hex(4)
        self.calls = EngineCalls(plan.url)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        with log_file.open("ab") as log:
            self._process = _start([*(command or SERVER), str(os.getpid()), encode(plan.arguments)], plan, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def device(self) -> str:
        return self.plan.device

    @property
    def ranks(self) -> int:
        return self.plan.ranks

    @property
    def shares_prefixes(self) -> bool:
        return self.plan.shares_prefixes

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def wait_healthy(self, deadline_s: float) -> None:
        """Wait for the first healthy answer; without one, EngineDied with the end of its log."""
        until = time.monotonic() + deadline_s
        while not await self.calls.healthy():
            if not self.alive:
                code = self._process.returncode
                raise EngineDied(f"the engine ended with code {code} at its start; {self.log_end()}")
            if time.monotonic() > until:
                raise EngineDied(f"the engine was not healthy within {deadline_s:g} s; {self.log_end()}")
            await asyncio.sleep(POLL_S)
        # A collection over all that was imported would hold up every update: it takes half a second.
        with contextlib.suppress(EngineError):
            await self.calls.freeze_garbage()

    async def watch(self) -> None:
        """Returns never; EngineDied when the process has ended, or has not answered for UNHEALTHY_S."""
        checked = answered = time.monotonic()
        while self.alive:
            await asyncio.sleep(POLL_S)
            if time.monotonic() - checked > CHECK_S:
                healthy, checked = await self.calls.healthy(), time.monotonic()
                answered = checked if healthy else answered
            if checked - answered > UNHEALTHY_S:
                raise EngineDied(f"the engine has not answered for {UNHEALTHY_S:g} s; {self.log_end()}")
        raise EngineDied(f"the engine ended with code {self._process.returncode}; {self.log_end()}")

    def stop(self, grace_s: float = STOP_S) -> None:
        """SIGTERM, then SIGKILL of everything in its group; blocks until nothing is left of it."""
        if self.alive and grace_s > 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        until = time.monotonic() + KILL_S
        while _group_exists(self.pid) and time.monotonic() < until:
            time.sleep(POLL_S)

    def log_end(self) -> str:
        """One clause with the last lines that this process wrote."""
        with self.log_file.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 8192))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        ending = " | ".join(line[:300] for line in lines[-LOG_LINES:])
        return f"{self.log_file} ends with: {ending}" if lines else f"{self.log_file} is empty"


def check_port(host: str, port: int) -> None:
    """EngineDied if an engine could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineDied(
                f"the engine cannot listen on {host}:{port} ({error.strerror}); stop what listens there, "
                "or set engine.port of the deployment"
            ) from error


def _start(command: list[str], plan: EnginePlan, log: BinaryIO) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(plan),
            start_new_session=True,
        )
    except OSError as error:
        raise EngineDied(
            f"the engine cannot be started by {command[0]!r} ({error.strerror}); correct engine.command"
        ) from error


def _environment(plan: EnginePlan) -> dict[str, str]:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if plan.device == "cpu":
        path.insert(0, str(CPU_SHIM))
    return {**os.environ, **plan.environment, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
