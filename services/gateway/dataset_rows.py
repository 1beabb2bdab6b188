"""A stored dataset -> row N, by its byte offset; no scan, any number of rows."""

import json
import os
import struct
from pathlib import Path
from typing import Any, cast

from services.gateway.check_row import Row
from services.gateway.write_rows import INDEX, ROWS

OFFSET_BYTES = 8


class DatasetRows:
    """An open dataset. Reads may come from several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._data = os.open(folder / ROWS, os.O_RDONLY)
        self._index = os.open(folder / INDEX, os.O_RDONLY)
        self._rows = os.fstat(self._index).st_size // OFFSET_BYTES - 1

    def __len__(self) -> int:
        return self._rows

    def read(self, row: int) -> Row:
        """Row `row`, counted from 0."""
        assert 0 <= row < self._rows, f"row {row} of {self._rows}"
        begin, end = struct.unpack("<QQ", os.pread(self._index, 2 * OFFSET_BYTES, row * OFFSET_BYTES))
        fields = cast(dict[str, Any], json.loads(os.pread(self._data, end - begin, begin)))
        pair = fields.get("chosen"), fields.get("rejected")
        return Row(fields["prompt"], fields["label"], fields["metadata"], *pair)

    def close(self) -> None:
        os.close(self._data)
        os.close(self._index)
