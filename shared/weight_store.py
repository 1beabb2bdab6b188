"""A path or fsspec URL -> the folders of weight versions there, each of which is whole or not there."""

import contextlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shared.errors import RunRejected
from shared.weight_files import MANIFEST

CHUNK = 8 * 2**20
ASIDE = ".writing_"

Write = Callable[[str, Iterable[Any]], None]
"""(name of a file, its parts one after the other)."""


class WeightStore:
    """The folder that a trainer and its engines share. All calls block, and raise OSError for whatever goes wrong.

    On a file system a folder is written aside, synced and renamed. An object store has no such thing: there the
    manifest is written last, and a folder without one does not count.
    """

    def __init__(self, url: str) -> None:
        """RunRejected if fsspec does not know the protocol, or needs a package for it that is not installed."""
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise RunRejected(
                f"weights.folder is {url!r}, which cannot be used here: {error}; write a path, or install what is named"
            ) from error
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.url: str = self._root if self.is_local else url

    def path(self, folder: str) -> Path:
        """Where a folder is on this machine."""
        assert self.is_local, f"{self.url} has no paths"
        return Path(self._root) / folder

    def folders(self) -> list[str]:
        """Names of what is there, whole or not."""
        try:
            with _os_errors():
                self._fs.invalidate_cache()
                found: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")

    def is_whole(self, folder: str) -> bool:
        """True if all of it was written."""
        with _os_errors():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(folder, MANIFEST)))

    @contextlib.contextmanager
    def writing(self, folder: str) -> Generator[Write]:
        """Write a folder; the manifest must be the last file. If the block fails, nothing is left of it."""
        into = f"{ASIDE}{folder}" if self.is_local else folder
        try:
            with _os_errors():
                self._fs.makedirs(self._at(into), exist_ok=True)
            yield lambda name, parts: self._write(self._at(into, name), parts)
            if self.is_local:
                self._put_in_place(into, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(into)
            raise

    def read(self, folder: str, name: str) -> bytes:
        """A small file; FileNotFoundError if it is not there."""
        with _os_errors():
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(self._at(folder, name)))

    def stream(self, folder: str, name: str) -> Iterator[bytes]:
        """A large file, in chunks."""
        with _os_errors(), self._fs.open(self._at(folder, name), "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def remove(self, folder: str) -> None:
        """Delete a folder, its manifest first."""
        if self.is_local:
            (self.path(folder) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.path(folder), ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._fs.rm_file(self._at(folder, MANIFEST))
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._fs.rm(self._at(folder), recursive=True)

    def _at(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _write(self, path: str, parts: Iterable[Any]) -> None:
        with _os_errors(), self._fs.open(path, "wb") as file:
            for part in parts:
                file.write(part)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())

    def _put_in_place(self, aside: str, folder: str) -> None:
        sync(self.path(aside))
        self.path(aside).rename(self.path(folder))
        sync(Path(self._root))


@contextlib.contextmanager
def _os_errors() -> Generator[None]:
    """Every file system of fsspec has a client of its own, which raises what it likes."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
