"""`module:attribute` -> a checked function."""

from pathlib import Path

import pytest

from shared.errors import PluginError
from shared.plugins import load_function

EXAMPLE = "async def score(rollout: Rollout) -> float"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plugin_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "async def score(rollout): return 1.0\n"
        "def plain(rollout): return 1.0\n"
        "async def two(rollout, label): return 1.0\n"
        "async def keyword(rollout, *, label): return 1.0\n"
        "async def optional(rollout, scale=2): return 1.0\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


async def test_a_function_in_the_working_directory_is_found(module: str) -> None:
    for attribute in ("score", "optional"):
        assert await load_function(f"{module}:{attribute}", ("rollout",), EXAMPLE, is_async=True)(None) == 1.0


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        ("two", "has the wrong signature; write `async def score"),
        ("keyword", "has the wrong signature"),
        ("plain", "must be an async function"),
        ("number", "has no function number"),
        ("absent", "has no function absent"),
    ],
)
def test_a_wrong_function_is_refused_with_the_right_signature(module: str, attribute: str, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        load_function(f"{module}:{attribute}", ("rollout",), EXAMPLE, is_async=True)


@pytest.mark.parametrize("path", ["score", "my.module.score", ":score", "module:"])
def test_a_path_without_module_or_attribute_is_refused(path: str) -> None:
    with pytest.raises(PluginError, match="write module:function"):
        load_function(path, ("rollout",), EXAMPLE)


def test_a_module_that_does_not_import_is_named() -> None:
    with pytest.raises(PluginError, match="module no_such_module does not import"):
        load_function("no_such_module:score", ("rollout",), EXAMPLE)


def test_a_module_that_ends_the_program_is_named(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_script.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(PluginError, match="ends the program when it is imported"):
        load_function(f"{module}_script:score", ("rollout",), EXAMPLE)


def test_a_callable_without_a_signature_is_refused() -> None:
    with pytest.raises(PluginError, match="builtins:type does not say what it takes; write `async def score"):
        load_function("builtins:type", ("rollout",), EXAMPLE, is_async=True)
