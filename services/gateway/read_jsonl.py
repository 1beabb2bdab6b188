"""A JSONL file -> (line number, parsed value or RowError), with bounded memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from services.gateway.check_row import MAX_ROW_BYTES, too_deep
from services.gateway.refusals import RowError

BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path, max_line_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[int, Any]]:
    """Every line that is not blank; lines count from 1."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(max_line_bytes + 1):
            number += 1
            if len(line) > max_line_bytes:
                _skip_line(file, line, max_line_bytes)
                yield number, RowError(f"is longer than the limit of {max_line_bytes} bytes a line; shorten the row")
                continue
            text = line.removeprefix(BOM) if number == 1 else line
            if text.strip():
                yield number, _parse(text)


def _skip_line(file: BinaryIO, line: bytes, chunk: int) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(chunk)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8").rstrip(), parse_constant=_refuse_constant)
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        return RowError(f"is not UTF-8 at byte {error.start}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return RowError(f"is not JSON: {what} at column {error.colno}; write one object a line")
    except RecursionError:
        return too_deep()
    except ValueError as error:
        return RowError(f"is not JSON that can be read: {error}")


def _refuse_constant(name: str) -> None:
    raise RowError(f"holds {name}, which is not JSON; write null or text")
