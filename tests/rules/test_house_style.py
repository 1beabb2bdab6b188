"""Sizes, names and forbidden things of the house style, over every source file."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "services", "sluice", "deploy")
MAX_FILE, MAX_FUNCTION = 400, 60
EMPTY_NAMES = re.compile(r"(^|_)(utils?|common|helpers?|manager|base|misc)$")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
ENVIRONMENT_READERS = ("shared/deployment.py", "deploy/cpu_engine/sitecustomize.py")
"""The second runs in SGLang's processes before anything of ours; its switches can come by environment only."""

SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted({*SOURCES, *(f for d in ("tests", "examples", "benchmarks") for f in (ROOT / d).rglob("*.py"))})


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    files = [f"{name(f)}: {lines} lines" for f in EVERYTHING if (lines := text(f).count("\n")) > MAX_FILE]
    long = [
        f"{name(file)}:{function.lineno} {function.name}: {lines} lines"
        for file in EVERYTHING
        for function in functions(tree(file))
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION
    ]
    assert not files, f"more than {MAX_FILE} lines; give the parts names"
    assert not long, f"functions beyond {MAX_FUNCTION} lines"


def test_file_names_say_what_happens_to_the_flow() -> None:
    assert not [name(file) for file in SOURCES if EMPTY_NAMES.search(file.stem)]


def test_a_module_begins_with_a_sentence_that_says_what_it_turns_into_what() -> None:
    assert not [name(file) for file in SOURCES if file.stat().st_size and not ast.get_docstring(tree(file))]


def test_nothing_pickles_and_nothing_flushes_redis() -> None:
    flush_all = "flush" + "all"
    assert not [name(f) for f in EVERYTHING if imported(tree(f)) & FORBIDDEN_MODULES or flush_all in text(f).lower()]


def test_the_environment_is_read_in_one_place() -> None:
    """A child gets `{**os.environ, ...}`; everything else comes from the settings."""
    found: list[str] = []
    for file in SOURCES:
        body = tree(file)
        scopes = (scope for scope in (*functions(body), *writes(body)) if hands_on(scope))
        allowed = {id(use) for scope in scopes for use in ast.walk(scope)}
        uses = (node for node in ast.walk(body) if names_environment(node) and id(node) not in allowed)
        found += [f"{name(file)}:{use.lineno}" for use in uses if name(file) not in ENVIRONMENT_READERS]
    assert not found, f"only {ENVIRONMENT_READERS} read it"


def text(file: Path) -> str:
    return file.read_text("utf-8")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(text(file))


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(body: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(body) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(body: ast.AST) -> set[str]:
    plain = {alias.name for node in ast.walk(body) if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in ast.walk(body) if isinstance(node, ast.ImportFrom)}


def writes(body: ast.AST) -> Iterator[ast.Call]:
    """`os.environ.update(...)` for libraries that are told things in no other way."""
    calls = (node for node in ast.walk(body) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "update")


def hands_on(scope: ast.AST) -> bool:
    """A write, or a function that makes a child's environment, `{**os.environ, ...}`."""
    if isinstance(scope, ast.Call):
        return True
    displays = (node for node in ast.walk(scope) if isinstance(node, ast.Dict))
    pairs = ((key, value) for d in displays for key, value in zip(d.keys, d.values, strict=True))
    return any(key is None and names_environment(value) for key, value in pairs)


def names_environment(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "environb", "getenv", "putenv")
    )
