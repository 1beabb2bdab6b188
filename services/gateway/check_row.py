"""One parsed row, as uploaded -> the row as it is stored, or a sentence that says what is wrong with it."""

import json
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from services.gateway.check_messages import check_written, type_name
from services.gateway.check_pair import PairKeys, check_pair, has_pair
from services.gateway.refusals import RowError
from shared.messages import MAX_ENTRY_BYTES, Turns

MAX_ROW_BYTES = MAX_ENTRY_BYTES // 4
"""The largest row; a finished attempt carries its row along and has to fit into one entry of a stream."""

MAX_DEPTH = 100
"""The deepest nesting of a row; what reads the row later gives up at about 250."""


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The names under which an upload keeps what a row consists of."""

    prompt: str = "prompt"
    label: str = "label"
    metadata: str = "metadata"
    chosen: str = "chosen"
    rejected: str = "rejected"

    @property
    def pair(self) -> PairKeys:
        return PairKeys(self.prompt, self.chosen, self.rejected)

    @property
    def all(self) -> tuple[str, ...]:
        return (self.prompt, self.label, self.metadata, self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset."""

    prompt: str | Turns
    label: Any
    metadata: dict[str, Any]
    chosen: str | Turns | None = None
    """The better of two answers to the prompt: text, or the messages that come after it; None in a row without."""
    rejected: str | Turns | None = None


def check_row(raw: Any, keys: RowKeys) -> Row:
    """RowError unless `raw` is an object with a usable prompt; label, metadata and a pair of answers may be absent."""
    if not isinstance(raw, dict):
        given = type_name(raw)
        raise RowError(f'a row is an object such as {{"{keys.prompt}": "1+1=", "{keys.label}": "2"}}, not {given}')
    fields = cast(dict[str, Any], raw)
    label, metadata = fields.get(keys.label), fields.get(keys.metadata)
    if not isinstance(metadata, dict | None):
        raise RowError(f"{keys.metadata!r} is {type_name(metadata)}; write an object, or leave it out")
    if has_pair(fields, keys.pair):
        prompt, chosen, rejected = check_pair(fields, keys.pair)
        return Row(prompt, label, metadata or {}, chosen, rejected)
    if keys.prompt not in fields:
        raise RowError(f"{keys.prompt!r} is missing; name the key that holds the prompt with ?prompt_key=")
    return Row(check_written(fields[keys.prompt], keys.prompt, "that the model continues"), label, metadata or {})


def encode_row(row: Row) -> bytes:
    """The line that stores a row; RowError if the streams could not carry it."""
    fields: dict[str, Any] = {"prompt": row.prompt, "label": row.label, "metadata": row.metadata}
    if row.chosen is not None:
        fields |= {"chosen": row.chosen, "rejected": row.rejected}
    try:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(fields) > MAX_DEPTH:
            raise too_deep()
        size = len(cast(bytes, msgpack.packb(fields)))
    except RecursionError:
        raise too_deep() from None
    except UnicodeEncodeError:
        raise RowError("holds half of a surrogate pair, which is no text; write the whole character") from None
    except OverflowError:
        raise RowError("holds an integer of more than 64 bits; write it as text") from None
    except ValueError:
        raise RowError("holds a number that is not finite, which is not JSON; write null or text") from None
    except TypeError as error:
        raise RowError(f"holds a value that is not JSON ({error}); write it as text") from None
    if size > MAX_ROW_BYTES:
        raise RowError(f"is {size} bytes long; the limit is {MAX_ROW_BYTES} bytes a row; shorten it")
    return line


def too_deep() -> RowError:
    return RowError(f"is nested deeper than {MAX_DEPTH} levels; write the inner levels as text")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [inner for one in level for inner in _inside(one)]:
        depth += 1
    return depth


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast(dict[str, Any], value).values())
    return cast(list[Any], value) if isinstance(value, list) else []
