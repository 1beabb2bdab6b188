"""Uploads -> datasets on disk: written aside, checked, made durable, then renamed into place."""

import asyncio
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

from services.gateway.check_row import Row, RowKeys
from services.gateway.dataset_rows import DatasetRows
from services.gateway.read_jsonl import read_jsonl
from services.gateway.read_parquet import read_parquet
from services.gateway.receive_upload import receive_upload
from services.gateway.refusals import Refusal
from services.gateway.suggest_name import suggest
from services.gateway.write_rows import write_rows

Format = Literal["jsonl", "parquet"]
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
ASIDE = ".incoming"
RECORD = "dataset.json"
UPLOAD = "upload"
STALE_S = 3600
"""Age after which what a killed gateway left aside is swept away; another gateway may be writing there now."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is known of a dataset without its rows."""

    name: str
    rows: int
    bytes: int
    """Size of the upload."""
    sha256: str
    """Of the upload."""
    format: Format
    created: float
    labels: bool
    text_labels: bool


class DatasetStore:
    """The datasets under one folder, one folder each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder / ASIDE
        self._stopping = Event()
        self._aside.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def close(self) -> None:
        """Abandon uploads that are being checked."""
        self._stopping.set()

    def names(self) -> list[str]:
        return sorted(f.name for f in self._folder.iterdir() if f.name != ASIDE and (f / RECORD).exists())

    def get(self, name: str) -> Dataset:
        """Refusal 404 if there is no such dataset."""
        file = self._folder / name / RECORD
        if not NAME.fullmatch(name) or not file.exists():
            raise Refusal(404, f"there is no dataset {name!r}; {suggest(name, self.names(), 'datasets')}")
        return Dataset(**json.loads(file.read_text("utf-8")))

    def all(self) -> list[Dataset]:
        return [self.get(name) for name in self.names()]

    def open(self, name: str) -> DatasetRows:
        """The rows, to be closed by the caller; Refusal 404 if there is no such dataset."""
        self.get(name)
        return DatasetRows(self._folder / name)

    def preview(self, name: str, offset: int, limit: int) -> list[tuple[int, Row]]:
        """Rows `offset` to `offset + limit`, as far as there are any, with their numbers."""
        rows = self.open(name)
        try:
            return [(row, rows.read(row)) for row in range(offset, min(offset + limit, len(rows)))]
        finally:
            rows.close()

    async def add(self, name: str, file_format: Format, keys: RowKeys, body: AsyncIterator[bytes]) -> Dataset:
        """Store a new dataset; nothing stays of it unless every row is good.

        Raises:
            Refusal: 422 (wrong name, wrong rows), 409 (the name is taken), 507 (the disk is full or broken).
        """
        self._check_new(name)
        aside = self._aside / secrets.token_hex(8)
        try:
            await asyncio.to_thread(aside.mkdir)
            size, sha256 = await receive_upload(body, aside / UPLOAD)
            return await _to_the_end(self._finish, name, file_format, keys, aside, size, sha256)
        except OSError as error:
            raise Refusal(507, f"the dataset could not be written ({error.strerror}); nothing was stored") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Refusal 404 if there is no such dataset."""
        self.get(name)
        aside = self._aside / secrets.token_hex(8)
        (self._folder / name).rename(aside)
        shutil.rmtree(aside)

    def _check_new(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Refusal(
                422, f"{name!r} is no dataset name; write 1 to 64 of a-z 0-9 _ . - beginning with a letter or digit"
            )
        if (self._folder / name).exists():
            raise Refusal(409, f"dataset {name} exists; choose another name, or delete it first")

    def _finish(self, name: str, file_format: Format, keys: RowKeys, aside: Path, size: int, sha256: str) -> Dataset:
        upload = aside / UPLOAD
        source = read_parquet(upload, keys) if file_format == "parquet" else read_jsonl(upload)
        written = write_rows(source, keys, aside, self._stopping)
        dataset = Dataset(
            name, written.rows, size, sha256, file_format, time.time(), written.labels, written.text_labels
        )
        upload.unlink()
        with (aside / RECORD).open("w", encoding="utf-8") as file:
            json.dump(asdict(dataset), file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(aside)
        self._check_new(name)  # another upload of the same name may have been faster
        aside.rename(self._folder / name)
        _sync_folder(self._folder)
        return dataset

    def _sweep(self) -> None:
        for folder in self._aside.iterdir():
            newest = max((f.stat().st_mtime for f in [folder, *folder.glob("*")]), default=0.0)
            if time.time() - newest > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


async def _to_the_end(function: Callable[..., Dataset], *args: Any) -> Dataset:
    """Run in a thread and, even when cancelled, wait for it: what it works on is removed afterwards."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(thread)
    finally:
        if not thread.done():
            await asyncio.wait({thread})


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
