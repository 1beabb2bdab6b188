"""The folder of a weight version <-> its manifest: what it holds, how to check it, and which version it builds on.

A full version is a Hugging Face folder. A delta is one file of zstd frames: each holds a piece of a tensor, as the
exclusive or with the same piece of the base version; one that is the same in both has no frame.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from shared.content_hash import NAME, content_hash
from shared.errors import WireError
from shared.messages import TensorSpec

MANIFEST = "sluice_weights.json"
DELTA = "delta.zst"
INDEX = "model.safetensors.index.json"
FORMAT = 1
ENCODING = "xor+planes+zstd"
PIECE = 16 * 2**20
"""Bytes of a tensor that are encoded as one: enough to compress well, few enough that threads share a tensor."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a version."""

    spec: TensorSpec
    hash: str
    """Of its bytes in this version."""
    frames: list[int] = field(default_factory=list[int])
    """Delta: bytes of the frame of each piece, in order, 0 where nothing changed; empty if nothing did anywhere."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file, with its tensors in the order of their bytes."""

    file: str
    tensors: list[StoredTensor]

    @property
    def specs(self) -> list[TensorSpec]:
        return [tensor.spec for tensor in self.tensors]


@dataclass(frozen=True, slots=True)
class Base:
    """The version that a delta is to be applied to."""

    folder: str
    """Its name, beside the delta's."""
    manifest: str
    """Hash of its manifest."""
    version: int
    checksum: str


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """The file DELTA: the frames of all tensors, in the order of shards and tensors."""

    nbytes: int
    hash: str
    base: Base


@dataclass(frozen=True, slots=True)
class VersionManifest:
    """All about one version in files. It is written last: a folder without it is not there."""

    run: str
    owner: str
    """By which the run differs from an earlier one of the same name."""
    chain: str
    """Names the versions that one trainer has written from its first to its last."""
    place: int
    """In the chain, from 0. Versions may be published again, and in another order."""
    version: int
    step: int
    checksum: str
    """As in WeightVersion."""
    shards: list[Shard]
    model_files: dict[str, str] = field(default_factory=dict[str, str])
    """Full: hash of each file beside the shards, such as config.json; empty for one that is a delta only."""
    delta: DeltaFile | None = None
    """How to get here from the version before. A full one has it too, for hosts that hold that version."""
    piece: int = PIECE
    """Delta: bytes of a tensor to a frame; a multiple of what any number takes."""
    format: int = FORMAT
    hashes: str = NAME
    encoding: str = ENCODING

    @property
    def kind(self) -> Literal["full", "delta"]:
        return "full" if self.model_files else "delta"

    @property
    def tensors(self) -> list[StoredTensor]:
        return [tensor for shard in self.shards for tensor in shard.tensors]


_MANIFEST: TypeAdapter[VersionManifest] = TypeAdapter(VersionManifest)


def encode_manifest(manifest: VersionManifest) -> bytes:
    """As JSON; `content_hash` of it is what other manifests and announcements name it by."""
    return _MANIFEST.dump_json(manifest)


def decode_manifest(data: bytes, wanted: str | None = None) -> VersionManifest:
    """WireError if it is damaged, not the one with this hash, or of a format that is not known here."""
    if wanted is not None and content_hash(data) != wanted:
        raise WireError("the manifest does not have the hash that it was announced with")
    try:
        manifest = _MANIFEST.validate_json(data)
    except ValidationError as error:
        raise WireError(f"the manifest does not decode: {error.errors()[0]['msg']}") from None
    written, known = (manifest.format, manifest.hashes, manifest.encoding), (FORMAT, NAME, ENCODING)
    if written != known:
        raise WireError(f"the manifest is of format {written}, and {known} is read here; use one release on both sides")
    return manifest
