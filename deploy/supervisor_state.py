"""The supervisor's condition <-> <home>/supervisor.json, and the lock that lets one supervisor run in a home."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.process import birth
from shared.errors import SluiceError

NAME = "supervisor.json"


@dataclass(slots=True)
class SupervisorState:
    """What the supervisor tells other processes; times are seconds since the epoch."""

    pid: int
    born: str
    """Time of birth of that process, so that a reused id is not taken for it."""
    started: float
    gateway_url: str
    ports: dict[str, int]
    """Setting -> port."""
    phase: str = "starting"
    """starting, running, stopping, stopped or failed."""
    failure: str = ""
    services: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Name -> phase, pid, restarts, since, reason, born."""

    @property
    def alive(self) -> bool:
        """True while the supervisor's process runs."""
        return bool(self.born) and birth(self.pid) == self.born

    def leftovers(self) -> dict[int, str]:
        """Service processes that still run: all of them while the supervisor lives, orphans after it was killed."""
        recorded = {int(s["pid"]): str(s["born"]) for s in self.services.values() if s.get("pid")}
        return {pid: born for pid, born in recorded.items() if born and birth(pid) == born}


def read_state(home: Path) -> SupervisorState | None:
    """The state in this home, of a supervisor that runs or ran; None if none was ever started there."""
    try:
        return SupervisorState(**json.loads((home / NAME).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise unusable(home, error) from error
    except (OSError, ValueError, TypeError) as error:
        raise SluiceError(f"{home / NAME} is not readable ({error}); delete it if no `sluice up` runs there") from error


def write_state(home: Path, state: SupervisorState) -> None:
    """Replace the state file at once; a reader sees the old or the new one."""
    aside = home / f"{NAME}.{os.getpid()}"
    aside.write_text(json.dumps(asdict(state), indent=1), "utf-8")
    aside.replace(home / NAME)


@contextlib.contextmanager
def only_one(home: Path) -> Generator[None]:
    """Hold the home's lock; SluiceError if another supervisor has it. The kernel frees it when the process dies.

    A home in which the block raises before it has written anything is not left behind.
    """
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    with _locked(home) as lock:
        try:
            yield
        except BaseException:
            if [*home.iterdir()] == [lock]:
                lock.unlink()
                _remove_empty(made)
            raise


@contextlib.contextmanager
def _locked(home: Path) -> Generator[Path]:
    file = home / "supervisor.lock"
    with contextlib.ExitStack() as open_files:
        while True:
            try:
                home.mkdir(parents=True, exist_ok=True)
                lock = open_files.enter_context(file.open("w"))
            except OSError as error:
                raise unusable(home, error) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SluiceError(already_runs(home)) from error
            with contextlib.suppress(FileNotFoundError):  # a start that was refused has removed the file meanwhile
                if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    break
        yield file


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def unusable(home: Path, error: OSError) -> SluiceError:
    """For a home that is no folder, or of somebody else."""
    return SluiceError(f"{home} cannot be used ({error.strerror}); set paths.home to a folder of yours")


def already_runs(home: Path) -> str:
    """The sentence for a second start in the same home."""
    state = read_state(home)
    who = f" (process {state.pid}, since {_clock(state.started)})" if state and state.alive else ""
    return (
        f"Sluice runs already in {home}{who}; stop it with `sluice down`, or choose another home: --set paths.home=..."
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
