"""What a command found -> tables for people, or one JSON document on standard output; errors on standard error."""

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
"""Notes and errors; standard output holds results alone."""
OUT = Console(highlight=False)
SHOWN_CHARACTERS = 240


def show(as_json: bool, data: Any, view: RenderableType) -> None:
    """Print `data` as JSON, or `view` for a person."""
    if as_json:
        print_json(data)
    else:
        OUT.print(view)


def print_json(data: Any, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(_plain(data), indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """A remark for a person, on standard error."""
    ERRORS.print(message)


def print_error(message: str) -> None:
    ERRORS.print("[bold red]error:[/]", end=" ")
    ERRORS.print(message, markup=False)


def table(
    columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None, fixed: Iterable[str] = ()
) -> Table:
    """A plain table; numbers are written to four places and set to the right, Text keeps its colour.

    Columns of `fixed` are never folded.
    """
    whole = set(fixed)
    view = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left")
    body = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(body) and all(isinstance(row[index], int | float | None) for row in body)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=column in whole)
    for row in body:
        view.add_row(*(value if isinstance(value, Text) else Text(_cell(value)) for value in row))
    return view


def clock(seconds: float | None) -> str:
    """A time of day with its date; a dash for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def short_clock(seconds: float | None) -> str:
    """A time of day with its day, for tables; a dash for none."""
    return time.strftime("%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


def begin(text: str) -> str:
    """The beginning of a text that may be long; --json gives all of it."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


def chat_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)


def size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Characters that steer a terminal as escapes, for prompts and answers may hold any."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _plain(data: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json")
    if isinstance(data, list | tuple):
        return [_plain(one) for one in data]
    return {name: _plain(value) for name, value in data.items()} if isinstance(data, dict) else data
