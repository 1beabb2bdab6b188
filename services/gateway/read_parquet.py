"""A Parquet file -> (row number, row as a dict), batch by batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.gateway.check_row import RowKeys
from services.gateway.refusals import RowError

BATCH_ROWS = 1024


def read_parquet(path: Path, keys: RowKeys) -> Iterator[tuple[int, Any]]:
    """Every row, its columns cut down to those that `keys` names; rows count from 1.

    Raises:
        RowError: the file is no Parquet file, or has no column for the prompt, nor for a pair of answers.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if keys.prompt not in names and not {keys.chosen, keys.rejected} <= set(names):
                raise RowError(f"no column {keys.prompt!r}; the columns are {', '.join(names)}; set ?prompt_key=")
            columns = [name for name in keys.all if name in names]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise RowError(f"not a readable Parquet file: {error}") from error
