"""Uploads -> datasets on disk: written aside, checked, made durable, then renamed into place."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar

from services.gateway.check_row import Row, RowKeys
from services.gateway.dataset_rows import DatasetRows
from services.gateway.read_jsonl import read_jsonl
from services.gateway.read_parquet import read_parquet
from services.gateway.receive_upload import receive_upload
from services.gateway.refusals import Refusal
from services.gateway.suggest_name import suggest
from services.gateway.write_rows import write_rows
from shared.check_name import HOW_TO_NAME, is_name
from shared.rest_answers import Dataset

T = TypeVar("T")
Format = Literal["jsonl", "parquet"]
ASIDE = ".incoming"
REPLACED = "replaced-"
"""Begins the name under which a dataset lies aside for the moment in which another takes its place."""
RECORD = "dataset.json"
UPLOAD = "upload"
STALE_S = 3600
"""Age after which what a killed gateway left aside is swept away; another gateway may be writing there now."""


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
        if not is_name(name) or not file.exists():
            raise Refusal(404, f"there is no dataset {name!r}; {suggest(name, self.names(), 'datasets')}")
        return Dataset.model_validate_json(file.read_bytes())

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

    async def add(
        self,
        name: str,
        file_format: Format,
        keys: RowKeys,
        body: AsyncIterator[bytes],
        replace: bool = False,
        admit: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    ) -> Dataset:
        """Store a dataset; nothing stays of it unless every row is good.

        Args:
            replace: take the place of a dataset of that name, once this one is complete.
            admit: entered around the moment in which the dataset takes its place; it may refuse.

        Raises:
            Refusal: 422 (wrong name, wrong rows), 409 (the name is taken), 507 (the disk is full or broken).
        """
        self._check_name(name, replace)
        aside = self._aside / secrets.token_hex(8)
        try:
            await asyncio.to_thread(aside.mkdir)
            size, sha256 = await receive_upload(body, aside / UPLOAD)
            dataset = await _to_the_end(self._write, name, file_format, keys, aside, size, sha256)
            async with admit():
                await _to_the_end(self._place, name, aside, replace)
            return dataset
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

    def _check_name(self, name: str, replace: bool) -> None:
        if not is_name(name):
            raise Refusal(422, f"{name!r} is no dataset name; {HOW_TO_NAME}")
        if not replace and (self._folder / name).exists():
            raise Refusal(409, f"dataset {name} exists; choose another name, or replace it with ?replace=true")

    def _write(self, name: str, file_format: Format, keys: RowKeys, aside: Path, size: int, sha256: str) -> Dataset:
        upload = aside / UPLOAD
        source = read_parquet(upload, keys) if file_format == "parquet" else read_jsonl(upload)
        written = write_rows(source, keys, aside, self._stopping)
        dataset = Dataset(
            name=name,
            rows=written.rows,
            bytes=size,
            sha256=sha256,
            format=file_format,
            created=time.time(),
            labels=written.labels,
            text_labels=written.text_labels,
            demonstrations=written.demonstrations,
            pairs=written.pairs,
        )
        upload.unlink()
        with (aside / RECORD).open("w", encoding="utf-8") as file:
            file.write(dataset.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(aside)
        return dataset

    def _place(self, name: str, aside: Path, replace: bool) -> None:
        """Rename into place. A gateway that is killed between the two renames finds the old dataset when it starts."""
        self._check_name(name, replace)  # another upload of the same name may have been faster
        target, old = self._folder / name, self._aside / f"{REPLACED}{secrets.token_hex(8)}"
        if target.exists():
            target.rename(old)
        aside.rename(target)
        _sync_folder(self._folder)
        shutil.rmtree(old, ignore_errors=True)

    def _sweep(self) -> None:
        for folder in self._aside.iterdir():
            if folder.name.startswith(REPLACED) and self._put_back(folder):
                continue
            newest = max((f.stat().st_mtime for f in [folder, *folder.glob("*")]), default=0.0)
            if time.time() - newest > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _put_back(self, folder: Path) -> bool:
        """True if the dataset that lay aside was nowhere else and is in its place again."""
        try:
            folder.rename(self._folder / json.loads((folder / RECORD).read_text("utf-8"))["name"])
        except OSError:
            return False  # what replaced it is there
        return True


async def _to_the_end(function: Callable[..., T], *args: Any) -> T:
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
