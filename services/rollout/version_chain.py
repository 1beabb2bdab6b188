"""An announced version in files -> how to get there: from what a host has, or from the newest full version below."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from services.rollout.copy_lock import Check
from services.rollout.refused_files import AlreadyApplied, DamagedVersion, MissingLink, StaleCopy, StoreAway, WrongBase
from shared.errors import WireError
from shared.messages import WeightFiles
from shared.weight_files import MANIFEST, Base, VersionManifest, decode_manifest
from shared.weight_store import WeightStore

VISIBLE_S = 5.0
"""A network file system may show what was written elsewhere some seconds late."""
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Stored:
    """One version in the store."""

    folder: str
    manifest: VersionManifest


@dataclass(frozen=True, slots=True)
class Way:
    """From nothing, or from what is there, to the version."""

    full: Stored | None
    """To begin with; None to begin with what is there."""
    deltas: list[Stored]
    """To be applied one after the other."""


class VersionChain:
    """What is in the store of the version that was announced, and of those that it builds on."""

    def __init__(self, store: WeightStore, files: WeightFiles, check: Check) -> None:
        """Read the version's manifest.

        Raises:
            FilesRefused: it is missing or damaged, or the store cannot be reached.
        """
        self._store, self._check = store, check
        self.target = self._read(files.folder, files.manifest)

    def way(self, standing: VersionManifest | None) -> Way:
        """From a version that a host holds, if the announced one builds on it.

        Raises:
            StaleCopy, WrongBase, AlreadyApplied: it is a delta, and does not.
            FilesRefused: a version in between is missing or damaged, or the store cannot be reached.
        """
        at, deltas = self.target, list[Stored]()
        while True:
            if standing is not None and is_same(standing, at.manifest):
                return Way(None, deltas[::-1])
            delta = at.manifest.delta
            if delta is not None and standing is not None and _builds_on(at.manifest, delta.base, standing):
                return Way(None, [*deltas, at][::-1])
            if at.manifest.kind == "full":
                break
            if delta is None:
                raise DamagedVersion(f"{at.folder} holds neither a model nor a delta")
            deltas.append(at)
            at = self._read(delta.base.folder, delta.base.manifest)
        if standing is not None:
            _refuse(standing, self.target.manifest, at.manifest)
        return Way(at, deltas[::-1])

    def stream(self, folder: str, name: str) -> Iterator[bytes]:
        """A file of a version, in chunks."""
        try:
            for chunk in self._store.stream(folder, name):
                self._check()
                yield chunk
        except FileNotFoundError as error:
            raise MissingLink(f"{name} of {folder} is not in {self._store.url}") from error
        except OSError as error:
            raise StoreAway(f"{name} of {folder} cannot be read from {self._store.url}: {error}") from error

    def _read(self, folder: str, wanted: str) -> Stored:
        try:
            return Stored(folder, decode_manifest(self._wait_for(folder), wanted))
        except WireError as error:
            raise DamagedVersion(f"{folder}: {error}") from error
        except OSError as error:
            raise StoreAway(f"{folder} cannot be read from {self._store.url}: {error}") from error

    def _wait_for(self, folder: str) -> bytes:
        until = time.monotonic() + VISIBLE_S
        while True:
            self._check()
            try:
                return self._store.read(folder, MANIFEST)
            except FileNotFoundError as error:
                if time.monotonic() > until:
                    raise MissingLink(
                        f"{folder} is not in {self._store.url}; the trainer's host and this one must share it"
                    ) from error
            time.sleep(POLL_S)


def check_base(standing: VersionManifest, next_one: VersionManifest) -> None:
    """AlreadyApplied or WrongBase if the delta of `next_one` is not to be applied to what stands."""
    assert next_one.delta is not None, "asked of deltas only"
    if standing.chain == next_one.chain and standing.place >= next_one.place:
        raise AlreadyApplied(
            f"version {next_one.version} is not to be applied to version {standing.version}, which has it in it"
        )
    if not _builds_on(next_one, next_one.delta.base, standing):
        base = next_one.delta.base
        raise WrongBase(
            f"version {next_one.version} of run {next_one.run} changes version {base.version} ({base.checksum[:12]}),"
            f" and what is there is version {standing.version} ({standing.checksum[:12]}) of run {standing.run}"
        )


def is_same(one: VersionManifest, other: VersionManifest) -> bool:
    """The same version of one run with the same content, though two trainers of the run may have written it."""
    return (one.run, one.owner, one.version, one.checksum) == (other.run, other.owner, other.version, other.checksum)


def _builds_on(manifest: VersionManifest, base: Base, standing: VersionManifest) -> bool:
    wanted = (manifest.run, manifest.owner, base.version, base.checksum)
    return wanted == (standing.run, standing.owner, standing.version, standing.checksum)


def _refuse(standing: VersionManifest, target: VersionManifest, full: VersionManifest) -> None:
    """A host that holds a version on which nothing here builds; one that merely is far behind may begin anew."""
    if standing.chain == target.chain and standing.place >= target.place:
        raise AlreadyApplied(f"this host is at version {standing.version} already, and {target.version} is asked for")
    if target.kind == "full":
        return
    if standing.chain != target.chain:
        raise StaleCopy(
            f"this host holds version {standing.version} of run {standing.run} ({standing.owner}, chain"
            f" {standing.chain}), and version {target.version} is of run {target.run} ({target.owner}, chain"
            f" {target.chain})"
        )
    if standing.place >= full.place:
        raise WrongBase(
            f"this host holds version {standing.version} with checksum {standing.checksum[:12]}, on which version"
            f" {target.version} does not build"
        )
