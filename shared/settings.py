"""TOML file < environment < command line -> one frozen, validated settings model."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from shared.errors import SettingsError

S = TypeVar("S", bound="Settings")
Tree = dict[str, Any]


class Settings(BaseModel):
    """A frozen settings model; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _tell_true_from_one(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("write a number")
        return value


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one source, such as a file or the command line."""

    source: str
    tree: Tree
    prefix: str = ""
    """Of the names of variables, where they are the source: `SLUICE_` makes `gateway.port` SLUICE_GATEWAY__PORT."""

    def reach(self, path: Sequence[str | int]) -> tuple[list[str], bool]:
        """The names on a setting's path that are in this layer, and whether they end at a value, not at a section."""
        node: Any = self.tree
        names: list[str] = []
        for part in path:
            if not isinstance(node, dict) or part not in node:
                break
            names.append(str(part))
            node = node[part]
        return names, not isinstance(node, dict)

    def place(self, path: Sequence[str | int]) -> str:
        """Where to look for a setting: the source, or its variable; `SLUICE_GATEWAY__*` for a whole section."""
        names, is_value = self.reach(path)
        return self.prefix + "__".join([*names, *([] if is_value else ["*"])]).upper() if self.prefix else self.source


def read_toml(path: Path) -> Tree:
    """Parse one TOML file; SettingsError names the file, and the line where it is malformed."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def from_environment(environ: Mapping[str, str], prefix: str) -> Tree:
    """`PREFIX_SECTION__NAME=value` -> {"section": {"name": value}}; values are read as TOML, else as text."""
    pairs = ((name.removeprefix(prefix), value) for name, value in environ.items() if name.startswith(prefix))
    return _tree((path.lower().split("__"), value) for path, value in pairs if "__" in path)


def from_assignments(assignments: Iterable[str]) -> Tree:
    """`section.name=value` command-line assignments -> a tree; SettingsError where there is no `=`."""
    split: list[tuple[list[str], str]] = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise SettingsError(
                f"{assignment!r} sets nothing; write section.name=value, such as trainer.learning_rate=1e-4"
            )
        split.append((path.strip().split("."), value.strip()))
    return _tree(split)


def merge(*layers: Tree) -> Tree:
    """Deep-merge trees; later layers win, tables merge, everything else is replaced."""
    merged: Tree = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge(merged[name], cast(Tree, value)) if both else value
    return merged


def validate(model: type[S], tree: Tree, source: str) -> S:
    """Check a tree against the model; SettingsError lists every wrong name and value, with what to write instead."""
    return validate_layers(model, [Layer(source, tree)])


def validate_layers(model: type[S], layers: Sequence[Layer]) -> S:
    """`validate` of the layers merged, later ones winning; each wrong setting is told with the layer that it is from.

    Raises:
        SettingsError: a name or value is wrong.
    """
    tree = merge(*(layer.tree for layer in layers))
    _check_text(tree, " and ".join(layer.place(()) for layer in layers if layer.tree))
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        errors = (cast(Tree, one) for one in error.errors())
        raise SettingsError("\n".join(_sentence(model, _origin(layers, one), one) for one in errors)) from None


def _check_text(tree: Tree, source: str) -> None:
    try:
        json.dumps(tree, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 20) : error.start]
        raise SettingsError(f"{source}: what follows {part!r} is no text in UTF-8; write it anew") from None


def restore(model: type[S], text: str) -> S:
    """Settings from the JSON in which they were stored when they were right.

    An older version may have taken what this one refuses: a run that has such settings is still there to be listed,
    finished and deleted. Names that are no settings any more are left out.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return _restored(model, json.loads(text))


def _restored(annotation: Any, value: Any) -> Any:
    model = _model_in(annotation)
    if isinstance(value, list) and model is not None:
        return [_restored(model, one) for one in cast(list[Any], value)]
    if not isinstance(value, dict) or model is None:
        return value
    fields, tree = model.model_fields, cast(Tree, value)
    known = {name: _restored(fields[name].annotation, tree[name]) for name in fields if name in tree}
    return model.model_construct(**known)


def _origin(layers: Sequence[Layer], error: Tree) -> str:
    """What to correct: the last layer that gives the value; else all that fill the section, or lack something in it."""
    path = cast(tuple[str | int, ...], error["loc"])
    section_for_value = error["type"].endswith("_type") and isinstance(error["input"], dict)
    for layer in reversed(layers):
        names, is_value = layer.reach(path)
        if is_value or (section_for_value and len(names) == len(path)):
            return layer.place(path)
    given = [layer for layer in layers if layer.tree] or layers[:1]
    deepest = max(len(layer.reach(path)[0]) for layer in given)
    about = [layer.place(path) for layer in given if len(layer.reach(path)[0]) == deepest]
    return about[0] if error["type"] == "missing" else " and ".join(about)


def _tree(pairs: Iterable[tuple[list[str], str]]) -> Tree:
    tree: Tree = {}
    for path, text in pairs:
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{'.'.join(path)}: {part} is a value, not a section")
        node[path[-1]] = _value(text)
    return tree


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(model: type[BaseModel], source: str, error: Tree) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _names_at(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else f"known here: {', '.join(sorted(known))}"
        )
        return f"{source}: {name} is not a setting; {hint}"
    if error["type"] == "missing":
        return f"{source}: {name} is required; add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not path:
        return f"{source}: {message}"
    if error["type"] in ("model_type", "list_type"):
        message = _how_to_write(model, path, error)
    given = f" is {error['input']!r}"
    if isinstance(error["input"], dict):
        given = " is a section" if error["type"].endswith("_type") else ""
    return f"{source}: {name}{given}; {message[:1].lower()}{message[1:]}"


def _how_to_write(model: type[BaseModel], path: list[str], error: Tree) -> str:
    names = ", ".join(_names_at(model, path))
    if error["type"] == "model_type":
        return f"write a table of {names}"
    return f"write a list of tables of {names}" if names else "write a list, in brackets"


def _names_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdecimal():
            continue  # the place in a list of models
        field = model.model_fields.get(part)
        nested = _model_in(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _is_number(annotation: Any) -> bool:
    of_several = get_origin(annotation) in (Union, types.UnionType, Annotated)
    return annotation in (int, float) or (of_several and any(_is_number(arg) for arg in get_args(annotation)))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model inside `Model`, `Model | None`, `list[Model]` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, dict, tuple):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None
