"""Parsed rows -> rows.jsonl and the index of its byte offsets; all rows are good or nothing counts."""

import os
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from services.gateway.check_messages import shows_an_answer
from services.gateway.check_row import Row, RowKeys, check_row, encode_row
from services.gateway.refusals import Refusal, RowError

ROWS = "rows.jsonl"
INDEX = "rows.index"
"""Little-endian uint64 each: where every row begins, then where the last one ends."""
ERRORS_SHOWN = 20
INDEX_BUFFER = 8192


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: how many rows, and what can be said of all of them."""

    rows: int
    labels: bool
    """Every row has a label."""
    text_labels: bool
    """Every row has a label that is text and not empty."""
    demonstrations: bool
    """Every row shows an answer: such a label, or else messages that end with one of the assistant."""
    pairs: bool
    """Every row has a chosen and a rejected answer."""


class _RowFiles:
    """The two files while they are written."""

    def __init__(self, data: BinaryIO, index: BinaryIO) -> None:
        self._data, self._index = data, index
        self._offsets = array("Q", [0])
        self._end = 0
        self.rows = 0
        self.labels = self.text_labels = self.demonstrations = self.pairs = True

    def append(self, row: Row) -> None:
        line = encode_row(row)
        self._data.write(line)
        self._end += len(line)
        self._offsets.append(self._end)
        self.rows += 1
        self.labels = self.labels and row.label is not None
        is_text = isinstance(row.label, str) and bool(row.label)
        self.text_labels = self.text_labels and is_text
        answers = is_text or (row.label is None and shows_an_answer(row.prompt))
        self.demonstrations = self.demonstrations and answers
        self.pairs = self.pairs and row.chosen is not None
        if len(self._offsets) >= INDEX_BUFFER:
            self._write_offsets()

    def make_durable(self) -> None:
        self._write_offsets()
        for file in (self._data, self._index):
            file.flush()
            os.fsync(file.fileno())

    def _write_offsets(self) -> None:
        if sys.byteorder == "big":
            self._offsets.byteswap()
        self._index.write(self._offsets.tobytes())
        del self._offsets[:]


def write_rows(source: Iterable[tuple[int, Any]], keys: RowKeys, folder: Path, stopping: Event) -> Written:
    """Check and store every row.

    Args:
        source: (line, parsed value or RowError) of every row.
        keys: the names of what a row consists of in those values.
        folder: where the two files are written.
        stopping: set when the gateway is to end.

    Raises:
        Refusal: 422 with the first wrong lines, or 503 when the gateway stops meanwhile.
    """
    with (folder / ROWS).open("wb") as data, (folder / INDEX).open("wb") as index:
        files = _RowFiles(data, index)
        wrong = _append_all(source, keys, files, stopping)
        if not wrong.count and not files.rows:
            wrong.add(None, "the file has no rows")
        if wrong.count:
            raise Refusal(422, wrong.message(), wrong.first)
        files.make_durable()
        return Written(files.rows, files.labels, files.text_labels, files.demonstrations, files.pairs)


def _append_all(source: Iterable[tuple[int, Any]], keys: RowKeys, files: _RowFiles, stopping: Event) -> "_Wrong":
    wrong = _Wrong()
    try:
        for line, raw in source:
            if stopping.is_set():
                raise Refusal(503, "the gateway is stopping; upload the dataset again")
            error = _append(raw, keys, files)
            if error is not None:
                wrong.add(line, error)
    except RowError as error:
        wrong.add(None, str(error))  # the file as a whole cannot be read on
    return wrong


class _Wrong:
    """The wrong rows: all are counted, the first are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[dict[str, Any]] = []

    def add(self, line: int | None, error: str) -> None:
        self.count += 1
        if self.count <= ERRORS_SHOWN:
            self.first.append({"line": line, "error": error})

    def message(self) -> str:
        first = f"line {self.first[0]['line']}: " if self.first[0]["line"] else ""
        shown = "" if self.count <= ERRORS_SHOWN else f"; the first {ERRORS_SHOWN} are listed"
        return f"nothing was stored: {first}{self.first[0]['error']} ({self.count} wrong{shown})"


def _append(raw: Any, keys: RowKeys, files: _RowFiles) -> str | None:
    try:
        if isinstance(raw, RowError):
            return str(raw)
        files.append(check_row(raw, keys))
    except RowError as error:
        return str(error)
    return None
