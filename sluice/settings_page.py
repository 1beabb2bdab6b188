"""The settings models, with the sentences under their fields -> docs/configuration.md."""

import ast
import inspect
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared.deployment import Deployment
from shared.run_settings import RunSettings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Two files, both TOML: a **deployment** says where the services of a machine live, a **run** says what is trained.
Both are read the same way, file < environment < command line; an unknown name is an error that suggests the right one.

This page is written by `python -m sluice.settings_page`; a test fails when it is out of date.
"""
DEPLOYMENT = """\
## Deployment: `sluice.toml`

Read from the working directory, or from `--config FILE`. Every setting can be given as a variable, section and name
in capitals with two underscores between them (`gateway.port` is `SLUICE_GATEWAY__PORT`), and as
`--set gateway.port=8400` to `sluice up`, `down`, `status`, `logs` and `doctor`.
"""
RUN = """\
## Run: the file of `sluice run start`

Every setting can be given as a variable (`trainer.learning_rate` is `SLUICE_RUN__TRAINER__LEARNING_RATE`) and as
`--set trainer.learning_rate=1e-5`. `POST /v1/runs` takes the same tree as JSON or TOML.
"""


def settings_page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, DEPLOYMENT, *_sections(Deployment), RUN, *_sections(RunSettings)]
    return "\n".join(parts)


def _sections(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A table for the plain fields of a model, then the sections below it."""
    texts = _field_texts(model)
    plain = {name: field for name, field in model.model_fields.items() if _section(field) is None}
    if plain:
        heading = f"### `[{path}]`" if path else "### Top of the file"
        yield f"{heading}\n\n{model.__doc__ or ''}\n"
        rows = (f"| `{name}` | {_default(f)} | {_allowed(f)} | {texts.get(name, '')} |" for name, f in plain.items())
        yield "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows, ""])
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from _sections(section, f"{path}.{name}" if path else name)


def _field_texts(model: type[BaseModel]) -> dict[str, str]:
    """The docstring that stands under each field."""
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef), "a model is a class"
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "left out"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def _allowed(field: FieldInfo) -> str:
    limits = [text for one in field.metadata for text in _limits(one)]
    return ", ".join([_type_name(field.annotation), *limits]).replace("|", "\\|")


def _limits(constraint: Any) -> Iterator[str]:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        value = getattr(constraint, name, None)
        if value is not None:
            yield f"{sign} {value}"
    if getattr(constraint, "min_length", None):
        yield f"at least {constraint.min_length}"
    if getattr(constraint, "pattern", None):
        yield f"`{constraint.pattern}`"


NAMES: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(one) for one in arguments if one is not type(None))
    if origin is list:
        return "list of " + _type_name(arguments[0])
    if origin is Annotated:
        limits = [text for extra in arguments[1:] for one in getattr(extra, "metadata", ()) for text in _limits(one)]
        return ", ".join([_type_name(arguments[0]), *limits])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "{ " + ", ".join(annotation.model_fields) + " }"
    return "table" if origin is dict else NAMES.get(annotation, "any")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(settings_page(), "utf-8")
    sys.stdout.write(f"{PAGE} is written\n")
