"""A command -> one running child: output to a file, ends with its parent, stopped together with all it started."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from shared.errors import SluiceError

PR_SET_PDEATHSIG = 1
KILL_DEADLINE_S = 10.0


class Child:
    """One running process, leader of a session of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the end; the exit code, or minus the signal."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds; whatever it started is gone afterwards as well."""
        family = descendants(self.pid)
        if self.running:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        family |= descendants(self.pid)
        self.kill_rest(family)
        await asyncio.wait_for(self._process.wait(), KILL_DEADLINE_S)

    def kill_rest(self, family: Mapping[int, str] | None = None) -> None:
        """SIGKILL what is left of the process group, and of `family` where the process is still the same one."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid, born in (family or {}).items():
            if birth(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def start(command: tuple[str, ...], environment: Mapping[str, str], log: Path) -> Child:
    """Start a child that appends its output to `log`; SluiceError if the program cannot be started.

    The kernel sends it SIGTERM when this process dies, however it dies.
    """
    try:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
    except OSError as error:
        raise SluiceError(
            f"{command[0]} cannot be started ({error}); reinstall it, or make room for its log {log}"
        ) from error
    return Child(process)


def _die_with(parent: int) -> Callable[[], None]:
    # looked up before the fork: between fork and exec only system calls are safe
    prctl, getppid, leave = ctypes.CDLL(None, use_errno=True).prctl, os.getppid, os._exit

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if getppid() != parent:  # the parent died before prctl took effect
            leave(1)

    return in_child


def birth(pid: int) -> str:
    """When a process was started, in ticks since boot; empty if there is none. Tells a reused id from the old one."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, by id, with their time of birth."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: dict[int, str] = {}
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found[child] = birth(child)
            queue.append(child)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name: state, parent, ...; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
