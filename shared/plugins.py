"""`module:attribute` -> the user's function, its signature checked before the first call."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import PluginError


def names_function(path: str) -> bool:
    """Whether it is written as `module:function`; that it loads is found out where it is called."""
    module, _, function = path.partition(":")
    return bool(module and function)


def load_function(
    path: str, parameters: tuple[str, ...], example: str, is_async: bool | None = None
) -> Callable[..., Any]:
    """Import the function that `path` names and check that it takes `parameters`, by name and in this order.

    Args:
        path: `module:attribute`; the working directory is searched as well.
        parameters: the names that the caller will pass positionally.
        example: the `def` line that the error message shows.
        is_async: True or False if the function must or must not be a coroutine function; None takes both.

    Raises:
        PluginError: the module or attribute is missing, is not callable, or takes other parameters.
    """
    module_name, _, attribute = path.partition(":")
    if not names_function(path):
        raise PluginError(f"{path!r} names no plugin; write module:function, such as my_rewards:score")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PluginError(
            f"{path}: module {module_name} does not import ({error}); install it or run beside it"
        ) from error
    except SystemExit as error:  # as a script does that reads a command line
        raise PluginError(f"{path}: module {module_name} ends the program when it is imported; correct it") from error
    except Exception as error:  # a module runs whatever its author wrote, and can fail in every way
        raise PluginError(f"{path}: module {module_name} fails when it is imported ({error!r}); correct it") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise PluginError(f"{path}: {module_name} has no function {attribute}; write `{example}`")
    _check_signature(path, function, parameters, example)
    if is_async is not None and inspect.iscoroutinefunction(function) != is_async:
        raise PluginError(f"{path} must {'be' if is_async else 'not be'} an async function; write `{example}`")
    return function


def _check_signature(path: str, function: Callable[..., Any], parameters: tuple[str, ...], example: str) -> None:
    try:
        given = list(inspect.signature(function).parameters.values())
    except ValueError as error:
        raise PluginError(f"{path} does not say what it takes; write `{example}`") from error
    positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in given)
    required_keyword = [p.name for p in given if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    surplus = [p.name for p in positional[len(parameters) :] if p.default is p.empty]
    missing = [] if variadic else list(parameters[len(positional) :])
    if required_keyword or surplus or missing:
        names = ", ".join(p.name for p in given)
        raise PluginError(f"{path}({names}) has the wrong signature; write `{example}`")
