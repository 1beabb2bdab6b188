"""One parsed row, as uploaded -> the row as it is stored, or a sentence that says what is wrong with it."""

import json
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from shared.errors import SluiceError
from shared.messages import MAX_ENTRY_BYTES, Turns

MAX_ROW_BYTES = MAX_ENTRY_BYTES // 4
"""The largest row; a finished attempt carries its row along and has to fit into one entry of a stream."""

MAX_DEPTH = 100
"""The deepest nesting of a row; what reads the row later gives up at about 250."""


class RowError(SluiceError):
    """A row of an upload that cannot be stored."""


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The names under which an upload keeps what a row consists of."""

    prompt: str = "prompt"
    label: str = "label"
    metadata: str = "metadata"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset."""

    prompt: str | Turns
    label: Any
    metadata: dict[str, Any]


def check_row(raw: Any, keys: RowKeys) -> Row:
    """RowError unless `raw` is an object with a usable prompt; label and metadata may be absent."""
    if not isinstance(raw, dict):
        raise RowError(f'a row is an object such as {{"{keys.prompt}": "1+1=", "{keys.label}": "2"}}, not {_type(raw)}')
    fields = cast(dict[str, Any], raw)
    if keys.prompt not in fields:
        raise RowError(f"{keys.prompt!r} is missing; name the key that holds the prompt with ?prompt_key=")
    metadata = fields.get(keys.metadata)
    if not isinstance(metadata, dict | None):
        raise RowError(f"{keys.metadata!r} is {_type(metadata)}; write an object, or leave it out")
    return Row(_check_prompt(fields[keys.prompt], keys.prompt), fields.get(keys.label), metadata or {})


def encode_row(row: Row) -> bytes:
    """The line that stores a row; RowError if the streams could not carry it."""
    fields = {"prompt": row.prompt, "label": row.label, "metadata": row.metadata}
    try:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        size = len(cast(bytes, msgpack.packb(fields)))
    except UnicodeEncodeError:
        raise RowError("holds half of a surrogate pair, which is no text; write the whole character") from None
    except OverflowError:
        raise RowError("holds an integer of more than 64 bits; write it as text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"holds a value that is not JSON: {error}") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(fields) > MAX_DEPTH:
        raise RowError(f"is nested deeper than {MAX_DEPTH} levels; write the inner levels as text")
    if size > MAX_ROW_BYTES:
        raise RowError(f"is {size} bytes long; the limit is {MAX_ROW_BYTES} bytes a row")
    return line


def _check_prompt(prompt: Any, key: str) -> str | Turns:
    if isinstance(prompt, str):
        if not prompt:
            raise RowError(f"{key!r} is empty; write the text that the model continues")
        return prompt
    if not isinstance(prompt, list):
        raise RowError(f"{key!r} is {_type(prompt)}; write text or a list of chat messages")
    turns = cast(list[Any], prompt)
    if not turns:
        raise RowError(f'{key!r} has no messages; write at least one, such as {{"role": "user", "content": "1+1="}}')
    for number, turn in enumerate(turns):
        if not _is_message(turn):
            raise RowError(f'{key!r}: message {number} is not {{"role": "user", "content": "1+1="}} or the like')
    return cast(Turns, turns)


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, dict):
        return False
    message = cast(dict[str, Any], turn)
    role, content = message.get("role"), message.get("content")
    return isinstance(role, str) and bool(role) and isinstance(content, str | list)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [inner for one in level for inner in _inside(one)]:
        depth += 1
    return depth


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast(dict[str, Any], value).values())
    return cast(list[Any], value) if isinstance(value, list) else []


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
