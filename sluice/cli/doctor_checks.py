"""One machine and one deployment -> a list of checks: ok, warn or fail, what was found, what to do."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from deploy import embedded_redis
from deploy.ports import check_ports
from deploy.services import ports_of
from deploy.supervisor_state import read_state
from shared.deployment import Deployment
from shared.errors import SluiceError

Level = Literal["ok", "warn", "fail"]

MINIMUM_PYTHON = (3, 11)
MINIMUM_CORES = 2
MINIMUM_MEMORY_GIB = 6
"""Real SGLang on a CPU takes 1.9 GiB, the trainer about 1 GiB."""
MINIMUM_DISK_GIB = 5
GPU_DEADLINE_S = 10
PACKAGES = {
    "torch": "the trainer and the engines",
    "transformers": "the trainer, the rollout workers and the engines",
    "sglang": "the engines of this machine",
    "sglang_router": "the router",
    "fastapi": "the gateway",
    "pyarrow": "Parquet datasets",
    "math_verify": "the math reward",
}
OPTIONAL = ("math_verify", "pyarrow")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    level: Level
    found: str
    advice: str = ""


def check_machine(deployment: Deployment) -> list[Check]:
    """All checks; none changes anything or takes longer than GPU_DEADLINE_S seconds."""
    return [
        _python(),
        _cores(),
        _memory(),
        _gpu(),
        _disk(deployment.paths.home),
        _logs(deployment.paths.home),
        *_packages(),
        _redis(deployment),
        _ports(deployment),
    ]


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MINIMUM_PYTHON:
        return Check("python", "fail", found, "use Python 3.11 or 3.12")
    if sys.platform != "linux":
        return Check("python", "warn", found, "only Linux is supported")
    return Check("python", "ok", found)


def _cores() -> Check:
    count = len(os.sched_getaffinity(0))
    advice = "" if count >= MINIMUM_CORES else "two or more make an engine and a trainer quicker"
    return Check("cores", "warn" if advice else "ok", f"{count} cores", advice)


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    advice = "" if total >= MINIMUM_MEMORY_GIB else f"an engine and a trainer want {MINIMUM_MEMORY_GIB} GiB"
    return Check("memory", "warn" if advice else "ok", f"{total:.1f} GiB", advice)


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("gpu", "ok", "none; engines and trainer run on the CPU")
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=GPU_DEADLINE_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "warn", f"nvidia-smi fails ({error})", "repair the driver, or run on the CPU")
    return Check("gpu", "ok", "; ".join(answer.stdout.strip().splitlines()) or "none")


def _disk(home: Path) -> Check:
    folder = next(parent for parent in (home.absolute(), *home.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "fail", f"{folder} is not writable", "set paths.home to a folder of yours")
    advice = "" if free >= MINIMUM_DISK_GIB else f"checkpoints want {MINIMUM_DISK_GIB} GiB or more"
    return Check("disk", "warn" if advice else "ok", found, advice)


def _logs(home: Path) -> Check:
    return Check("logs", "ok", f"one of each service in {home / 'logs'}; sglang-0.log is of the server of engine-0")


def _packages() -> Iterator[Check]:
    for module, user in PACKAGES.items():
        if _importable(module):
            yield Check(module, "ok", _version(module))
        else:
            level: Level = "warn" if module in OPTIONAL else "fail"
            yield Check(module, level, "not installed", f"install it for {user}: run `make setup`")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(module: str) -> str:
    try:
        return version(module.replace("_", "-").replace(".", "-"))
    except PackageNotFoundError:
        return "installed"


def _redis(deployment: Deployment) -> Check:
    if deployment.redis.url:
        return Check("redis", "ok", "an external server is set; it is checked when services start")
    try:
        return Check("redis", "ok", str(embedded_redis.find_server()))
    except SluiceError as error:
        return Check("redis", "fail", str(error))


def _ports(deployment: Deployment) -> Check:
    state = read_state(deployment.paths.home)
    if state is not None and state.alive:
        return Check("ports", "ok", f"in use by this deployment (process {state.pid})")
    try:
        uses = [use for ports in ports_of(deployment).values() for use in ports]
        check_ports(uses)
    except SluiceError as error:
        return Check("ports", "fail", str(error))
    return Check("ports", "ok", f"{len(uses)} free: {', '.join(str(use.port) for use in uses)}")
