"""A manifest is read as it was written, or refused with what is wrong."""

from dataclasses import replace

import pytest

from shared.content_hash import content_hash, running_hash
from shared.errors import WireError
from shared.messages import TensorSpec
from shared.weight_files import Base, DeltaFile, Shard, StoredTensor, VersionManifest, decode_manifest, encode_manifest

TENSOR = StoredTensor(TensorSpec("model.norm.weight", "bfloat16", [4]), "aa", [12, 0])
FULL = VersionManifest("r1", "o", "c", 0, 3, 3, "sum", [Shard("model.safetensors", [TENSOR])], {"config.json": "bb"})
DELTA = replace(FULL, model_files={}, delta=DeltaFile(12, "dd", Base("v2", "ee", 2, "before")))


@pytest.mark.parametrize(("manifest", "kind"), [(FULL, "full"), (DELTA, "delta")])
def test_a_manifest_is_read_as_it_was_written(manifest: VersionManifest, kind: str) -> None:
    encoded = encode_manifest(manifest)
    assert decode_manifest(encoded, content_hash(encoded)) == manifest
    assert manifest.kind == kind
    assert manifest.tensors == [TENSOR]


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"", "does not decode"),
        (b"{}", "does not decode"),
        (encode_manifest(replace(FULL, format=2)), "is of format"),
        (encode_manifest(replace(FULL, hashes="md5")), "'md5'.*use one release on both sides"),
        (encode_manifest(replace(FULL, encoding="plain")), "'plain'"),
    ],
)
def test_a_manifest_that_is_none_or_of_another_release_is_refused(damaged: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_manifest(damaged)


def test_a_manifest_with_another_hash_than_the_announced_one_is_refused() -> None:
    with pytest.raises(WireError, match="does not have the hash"):
        decode_manifest(encode_manifest(FULL), content_hash(encode_manifest(DELTA)))


def test_a_hash_is_of_all_bytes_however_they_come() -> None:
    running = running_hash()
    for part in (b"ab", b"", b"c"):
        running.update(part)
    assert running.hexdigest() == content_hash(b"abc") == content_hash(b"a", memoryview(b"bc"))
    assert len(content_hash(b"")) == 32
    assert content_hash(b"abd") != content_hash(b"abc")
