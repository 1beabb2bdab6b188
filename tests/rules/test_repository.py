"""Rules of the repository's files: no registry addresses, a complete lock, extras that fit the services."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy.write_lock import NOT_LOCKED

ROOT = Path(__file__).parents[2]
REGISTRY = re.compile(
    r"(index-url|extra-index|find-links|pypi\.|pythonhosted|docker\.io|quay\.io|ghcr\.io|gcr\.io)", re.I
)
TEXT = {".py", ".toml", ".yml", ".yaml", ".md", ".lock", ".txt", ".Dockerfile", ".sh", ""}


def tracked() -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in answer.stdout.splitlines()]


def test_no_file_names_a_package_registry() -> None:
    files = [f for f in tracked() if f.is_file() and f.suffix in TEXT and f != Path(__file__)]
    found = [f.name for f in files if REGISTRY.search(f.read_text("utf-8", "replace"))]
    assert not found, "where packages come from is for pip's own configuration to say"


def test_the_lock_pins_every_package_of_the_project_exactly() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = {re.split(r"==", line)[0]: line for line in lines}
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ ]+( ; .+)?", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name not in NOT_LOCKED}
    assert len(extras) == len(project["optional-dependencies"]) - len(NOT_LOCKED)
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {re.split(r"[\[<>=; ]", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= pins.keys()
    assert "torchvision" not in pins


def test_only_the_trainers_extra_brings_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name, wanted in extras.items() if any(one.startswith("torch") for one in wanted)] == ["trainer"]
