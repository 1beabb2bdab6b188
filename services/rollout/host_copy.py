"""Versions in a store -> this host's one copy of the newest, taken from version to version by what changed.

The engines of a host share it: whoever comes first brings it up to date, alone; then all may read. A mark beside the
model says which version it is, and whether it is whole; it says that it is not for as long as the model is changed.
"""

import contextlib
import mmap
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from services.rollout.apply_delta import apply_frame, changes
from services.rollout.copy_lock import Check, CopyLock, HeldLock
from services.rollout.mapped_model import THREADS, Bytes, find_damage, map_tensors
from services.rollout.refused_files import DamagedCopy, DamagedVersion, FilesRefused, HalfWritten, HostFailed, WrongBase
from services.rollout.version_chain import Stored, VersionChain, check_base, is_same
from shared.content_hash import content_hash, running_hash
from shared.weight_files import DELTA, VersionManifest

MARK, MODEL, LOCK = "mark.json", "model", "lock"
OnRefusal = Callable[[FilesRefused], object]


@dataclass(frozen=True, slots=True)
class Mark:
    """What the copy is."""

    is_whole: bool
    manifest: VersionManifest
    """Of the version that it holds, or is to hold when it is whole again."""


_MARK: TypeAdapter[Mark] = TypeAdapter(Mark)


class HostCopy:
    """The copy in one folder of this host."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._model = folder, folder / MODEL
        self._lock = CopyLock(folder / LOCK)
        self._is_verified = False
        """This process has seen all bytes of the copy, or has written them; from then on the mark is enough."""

    def take(self, chain: VersionChain, check: Check, on_refusal: OnRefusal) -> tuple[Path, HeldLock]:
        """Bring the copy to a version, and hold it there; the lock is to be released when the model was read.

        Args:
            on_refusal: told why the copy cannot be used, before it is made anew from the newest full version.

        Raises:
            FilesRefused: the version cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while True:
                with contextlib.ExitStack() as stack:
                    held = stack.enter_context(self._lock.for_reading(check))
                    if self._is_at(chain.target.manifest, check):
                        stack.pop_all()
                        return self._model, held
                with self._lock.for_writing(check):
                    self._bring_to(chain, check, on_refusal)
        except OSError as error:
            raise HostFailed(f"{self._folder} cannot hold a copy of the weights: {error}") from error

    def _is_at(self, target: VersionManifest, check: Check) -> bool:
        """Of a damaged copy: no. Others may read it meanwhile."""
        try:
            standing = self._standing(check)
        except FilesRefused:
            return False
        return standing is not None and is_same(standing, target)

    def _bring_to(self, chain: VersionChain, check: Check, on_refusal: OnRefusal) -> None:
        try:
            self._go(chain, self._standing(check), check)
        except FilesRefused as refusal:
            if not refusal.of_copy:
                raise
            on_refusal(refusal)
            try:
                self._go(chain, None, check)
            except DamagedCopy as again:  # the full version was right a moment ago, so a delta is not
                raise DamagedVersion(str(again)) from again

    def _standing(self, check: Check) -> VersionManifest | None:
        """What the copy holds; None if there is none.

        Raises:
            HalfWritten, DamagedCopy: it is of no use.
        """
        try:
            mark = _MARK.validate_json((self._folder / MARK).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise HalfWritten(
                f"{self._folder / MARK} does not say what the copy is: {error.errors()[0]['msg']}"
            ) from error
        if not mark.is_whole:
            raise HalfWritten(f"the way to version {mark.manifest.version} in {self._folder} was not gone to its end")
        if not self._is_verified:
            self._verify(mark.manifest, check)
            self._is_verified = True
        return mark.manifest

    def _go(self, chain: VersionChain, standing: VersionManifest | None, check: Check) -> None:
        way = chain.way(standing)
        if way.full is not None:
            self._seed(chain, way.full, check)
            standing = way.full.manifest
        for delta in way.deltas:
            assert standing is not None, "without a full version the way begins with what stands"
            self._apply(chain, standing, delta)
            standing = delta.manifest
        self._is_verified = True

    def _seed(self, chain: VersionChain, full: Stored, check: Check) -> None:
        """Replace whatever is there by a full version."""
        manifest = full.manifest
        self._mark(manifest, is_whole=False)
        shutil.rmtree(self._model, ignore_errors=True)
        self._model.mkdir()
        for name in (*manifest.model_files, *(shard.file for shard in manifest.shards)):
            _write(self._model / name, chain.stream(full.folder, name))
        for name, wanted in manifest.model_files.items():
            if content_hash((self._model / name).read_bytes()) != wanted:
                raise DamagedVersion(f"{name} of {full.folder} is not what was written")
        try:
            self._verify(manifest, check)
        except DamagedCopy as error:
            raise DamagedVersion(f"{full.folder} is not what was written: {error}") from error
        self._mark(manifest, is_whole=True)

    def _apply(self, chain: VersionChain, standing: VersionManifest, delta: Stored) -> None:
        """Change the model to the next version; what the delta's file holds is proven before the first byte is.

        Once begun it goes on to its end, late or not: half of it would be of no use to the next one either.
        """
        manifest, fetched = delta.manifest, self._folder / DELTA
        check_base(standing, manifest)
        before = {tensor.spec.name: tensor.hash for tensor in standing.tensors}
        if any(not tensor.frames and before.get(tensor.spec.name) != tensor.hash for tensor in manifest.tensors):
            raise WrongBase(f"{delta.folder} leaves tensors as they are that are others in version {standing.version}")
        self._fetch(chain, delta, fetched)
        contents = self._mapped(manifest, change=True)
        work = list(changes(manifest, contents, memoryview(_map(fetched))))
        self._mark(manifest, is_whole=False)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(apply_frame, [frame for frame, _ in work], [piece for _, piece in work]))
        if damage := find_damage(contents, [tensor for tensor in manifest.tensors if tensor.frames]):
            raise DamagedCopy(f"after {delta.folder} was applied, {damage}")
        self._mark(manifest, is_whole=True)
        fetched.unlink()

    def _fetch(self, chain: VersionChain, delta: Stored, to: Path) -> None:
        assert delta.manifest.delta is not None, "the way holds deltas only"
        running = running_hash()

        def hashed() -> Iterable[bytes]:
            for chunk in chain.stream(delta.folder, DELTA):
                running.update(chunk)
                yield chunk

        _write(to, hashed())
        if running.hexdigest() != delta.manifest.delta.hash:
            raise DamagedVersion(f"{DELTA} of {delta.folder} is not what was written")

    def _verify(self, manifest: VersionManifest, check: Check) -> None:
        if damage := find_damage(self._mapped(manifest), manifest.tensors, check):
            raise DamagedCopy(f"in {self._model}, {damage}")

    def _mapped(self, manifest: VersionManifest, change: bool = False) -> dict[str, Bytes]:
        try:
            return map_tensors(self._model, manifest.shards, change)
        except (FileNotFoundError, ValueError) as error:
            raise DamagedCopy(f"in {self._model}, {error}") from error

    def _mark(self, manifest: VersionManifest, is_whole: bool) -> None:
        aside = self._folder / f".{MARK}"
        _write(aside, [_MARK.dump_json(Mark(is_whole, manifest))])
        aside.rename(self._folder / MARK)


def _write(path: Path, parts: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
