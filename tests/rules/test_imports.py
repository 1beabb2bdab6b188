"""The import rules: services import themselves and shared, absolute names only, torch in two places."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "services", "sluice", "deploy")
SERVICES = sorted(p.name for p in (ROOT / "services").iterdir() if p.is_dir() and not p.name.startswith("_"))
TORCH_PLACES = ("services.trainer", "deploy.cpu_engine")

ALLOWED = {
    "shared": ("shared",),
    "deploy": ("deploy", "shared"),
    "sluice": ("sluice", "deploy", "shared"),
    **{f"services.{name}": (f"services.{name}", "shared") for name in SERVICES},
}
"""Whose modules may import which of our modules."""


def sources() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def owner_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "services" and len(parts) > 1 else parts[0]


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import that runs; those under `if TYPE_CHECKING` never do."""
    unreal = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for child in test.body
        for node in ast.walk(child)
    }
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "services":
            yield from ((node.lineno, f"services.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def test_a_module_imports_only_what_its_place_allows() -> None:
    wrong: list[str] = []
    for file in sources():
        owner = owner_of(module_of(file))
        for line, name in imports_of(ast.parse(file.read_text("utf-8"))):
            ours = name.split(".")[0] in PACKAGES
            if name.startswith(".") or (ours and owner_of(name) not in ALLOWED.get(owner, ())):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


def test_every_service_is_one_that_the_design_names() -> None:
    assert SERVICES == ["gateway", "reward", "rollout", "trainer"]


WITHOUT_TORCH = """
import importlib, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}")
"""
"""Imports modules as on a machine where torch is not installed."""


def test_everything_but_the_trainer_and_the_cpu_engine_imports_without_torch() -> None:
    modules = [module_of(file) for file in sources()]
    free = [m for m in modules if not m.startswith(TORCH_PLACES) and not m.endswith("__main__")]
    assert len(free) > 50
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *free], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_that_machine_really_has_no_torch() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "torch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "No module named 'torch'" in answer.stderr
