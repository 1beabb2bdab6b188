"""Staged weights -> folders in a store: whole models, and what changed since the version before."""

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from services.trainer.backends.adapt_layers import AdapterShape
from services.trainer.backends.adapter_files import ADAPTER_CONFIG, adapter_config
from services.trainer.encode_delta import Bytes, encode_piece, pieces_of
from services.trainer.model_files import model_files
from services.trainer.stage_weights import Staged
from services.trainer.version_names import VersionName
from shared.content_hash import content_hash, running_hash
from shared.fp8_checkpoint import FP8, quantization_config
from shared.messages import TensorSpec, WeightFiles
from shared.safetensors_file import header_of, nbytes_of, width_of
from shared.weight_files import (
    DELTA,
    INDEX,
    MANIFEST,
    PIECE,
    Base,
    DeltaFile,
    Shard,
    StoredTensor,
    VersionManifest,
    encode_manifest,
)
from shared.weight_store import WeightStore, Write

THREADS = 4
"""That hash and compress, beside the training of the next step."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What is the same in all versions that one trainer writes."""

    run: str
    owner: str
    epoch: int
    model: Path
    """Folder of the initial model, for what stands beside the weights."""
    dtype: str
    adapter: AdapterShape | None = None
    """Of a run whose versions are adapters of that model alone."""

    @property
    def stem(self) -> str:
        """Of the names of the files with weights."""
        return "adapter_model" if self.adapter else "model"

    def beside(self, quantization: dict[str, Any] | None) -> dict[str, bytes]:
        """What stands beside the weights in a full version, by name; `quantization` as for model_files."""
        if self.adapter is not None:
            return {ADAPTER_CONFIG: adapter_config(self.adapter, self.model)}
        return model_files(self.model, self.dtype, quantization)


@dataclass(frozen=True, slots=True)
class _Last:
    """The version before, on the host: what the next delta is made against."""

    base: Base
    contents: list[Bytes]
    """The bytes of each bucket."""
    since_full: int


class VersionWriter:
    """Writes the versions of one trainer, one after the other. All of it blocks."""

    def __init__(self, store: WeightStore, about: RunFiles, full_every: int | None, piece: int = PIECE) -> None:
        """`full_every`: how many versions it is from one full version to the next; None writes no deltas at all."""
        self.store, self._about, self._full_every, self._piece = store, about, full_every, piece
        self._chain = secrets.token_hex(8)
        self._last: _Last | None = None
        self.names: list[VersionName] = []
        """Of all that was written, oldest first."""

    def write(self, staged: Staged, checksum: str, in_full: bool = False) -> WeightFiles:
        """Write a version, whole or not at all; in full, too, after one that could not be written.

        Raises:
            OSError: the store cannot be reached, or is full.
        """
        last, self._last = self._last, None  # while it is being changed, nothing can be built on it
        age = last.since_full + 1 if last is not None else 0
        is_full = in_full or last is None or self._full_every is None or age >= self._full_every
        name = VersionName(self._about.epoch, len(self.names), staged.version, "full" if is_full else "delta")
        with self.store.writing(str(name)) as write, ThreadPoolExecutor(THREADS) as pool:
            version = _Version(staged, write, pool, self._piece, self._about.stem)
            if last is None:
                version.contents = [_on_host(flat, self._full_every is not None) for flat in staged.buckets.flat]
                delta = None
            else:
                delta = version.write_delta(last)
            beside = version.write_model(self._about) if is_full else {}
            manifest = VersionManifest(
                run=self._about.run,
                owner=self._about.owner,
                chain=self._chain,
                place=name.number,
                version=staged.version,
                step=staged.step,
                checksum=checksum,
                shards=version.shards(),
                model_files=beside,
                delta=delta,
                piece=self._piece,
            )
            encoded = encode_manifest(manifest)
            write(MANIFEST, [encoded])
        self.names.append(name)
        hashed = content_hash(encoded)
        if self._full_every is not None:
            base = Base(str(name), hashed, staged.version, checksum)
            self._last = _Last(base, version.contents, 0 if is_full else age)
        before = None if is_full or delta is None else delta.base
        return WeightFiles(
            store=self.store.url,
            folder=str(name),
            kind=manifest.kind,
            manifest=hashed,
            base_version=before.version if before else None,
            base_checksum=before.checksum if before else "",
        )


@dataclass
class _Version:
    """One version on its way to the store."""

    staged: Staged
    write: Write
    pool: ThreadPoolExecutor
    piece: int
    stem: str
    contents: list[Bytes] = field(default_factory=list[Bytes])
    """The bytes of each bucket, on the host."""
    frames: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def write_delta(self, last: _Last) -> DeltaFile:
        """What changed; the contents of the last version become those of this one."""
        running, nbytes = running_hash(), 0

        def hashed() -> Iterator[bytes]:
            nonlocal nbytes
            for frame in self._encode(last):
                running.update(frame)
                nbytes += len(frame)
                yield frame

        self.write(DELTA, hashed())
        self.contents = last.contents
        return DeltaFile(nbytes, running.hexdigest(), last.base)

    def write_model(self, about: RunFiles) -> dict[str, str]:
        """A Hugging Face folder; returns the hash of each file beside the shards."""
        layout = self.staged.buckets.layout
        beside = about.beside(_quantization(layout))
        for file, bucket, content in zip(self._files(), layout, self.contents, strict=True):
            self.write(file, [header_of(bucket), content.data])
        if len(layout) > 1:
            beside[INDEX] = self._index()
        for name, text in beside.items():
            self.write(name, [text])
        return {name: content_hash(text) for name, text in beside.items()}

    def shards(self) -> list[Shard]:
        """All tensors with their hashes."""
        made: list[Shard] = []
        for file, bucket, content in zip(self._files(), self.staged.buckets.layout, self.contents, strict=True):
            hashes = self.pool.map(content_hash, (part for _, part in _tensors(bucket, content)))
            made.append(Shard(file, [self._stored(*each) for each in zip(bucket, hashes, strict=True)]))
        return made

    def _stored(self, spec: TensorSpec, found: str) -> StoredTensor:
        frames = self.frames.get(spec.name, [])
        return StoredTensor(spec, found, frames if any(frames) else [])

    def _encode(self, last: _Last) -> Iterator[bytes]:
        """Frame after frame; a bucket at a time is compressed."""
        for bucket, flat, before in zip(
            self.staged.buckets.layout, self.staged.buckets.flat, last.contents, strict=True
        ):
            pieces = [
                (spec.name, new, base)
                for (spec, now), (_, then) in zip(
                    _tensors(bucket, _on_host(flat, False)), _tensors(bucket, before), strict=True
                )
                for new, base in zip(self._pieces(spec, now), self._pieces(spec, then), strict=True)
            ]
            encoded = self.pool.map(encode_piece, (new for _, new, _ in pieces), (base for _, _, base in pieces))
            for (name, _, _), frame in zip(pieces, encoded, strict=True):
                self.frames.setdefault(name, []).append(len(frame))
                yield frame

    def _pieces(self, spec: TensorSpec, content: Bytes) -> Iterator[Bytes]:
        return pieces_of(content, self.piece, width_of(spec))

    def _files(self) -> list[str]:
        count = len(self.staged.buckets.layout)
        if count == 1:
            return [f"{self.stem}.safetensors"]
        return [f"{self.stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

    def _index(self) -> bytes:
        layout = self.staged.buckets.layout
        places = {spec.name: file for file, bucket in zip(self._files(), layout, strict=True) for spec in bucket}
        return json.dumps({"metadata": {"total_size": self.staged.buckets.nbytes}, "weight_map": places}).encode()


def _quantization(layout: list[list[TensorSpec]]) -> dict[str, Any] | None:
    """What config.json says about tensors in fp8; None if there are none."""
    specs = [spec for bucket in layout for spec in bucket]
    converted = {spec.name for spec in specs if spec.dtype == FP8}
    return quantization_config(converted, {spec.name: spec.shape for spec in specs}) if converted else None


def _on_host(flat: torch.Tensor, keep: bool) -> Bytes:
    """The bytes of a bucket; those of one that is on the host already are copied only if they are to be kept."""
    on_host = flat.cpu()
    return on_host.numpy().copy() if keep and on_host is flat else on_host.numpy()


def _tensors(bucket: list[TensorSpec], content: Bytes) -> Iterator[tuple[TensorSpec, Bytes]]:
    at = 0
    for spec in bucket:
        yield spec, content[at : at + nbytes_of(spec)]
        at += nbytes_of(spec)
