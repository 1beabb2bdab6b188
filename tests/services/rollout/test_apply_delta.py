"""A delta applied to its base is the next version, whatever the bytes; what is no delta of these bytes is refused."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from services.rollout.apply_delta import Bytes, apply_frame, changes
from services.rollout.refused_files import DamagedVersion
from services.trainer.encode_delta import encode_piece, pieces_of
from shared.messages import TensorSpec
from shared.safetensors_file import CODES
from shared.weight_files import Shard, StoredTensor, VersionManifest

PIECE = 8


def bytes_of(content: bytes) -> Bytes:
    return np.frombuffer(content, np.uint8).copy()


def manifest_of(frames: dict[str, list[int]], dtype: str = "uint8") -> VersionManifest:
    tensors = [StoredTensor(TensorSpec(name, dtype, [1]), "", lengths) for name, lengths in frames.items()]
    return VersionManifest("r1", "o", "c", 1, 1, 1, "sum", [Shard("model.safetensors", tensors)], piece=PIECE)


def encode(new: Bytes, base: Bytes, width: int = 1) -> list[bytes]:
    pieces = (pieces_of(content, PIECE, width) for content in (new, base))
    return [encode_piece(*pair) for pair in zip(*pieces, strict=True)]


@st.composite
def pairs(draw: st.DrawFn, width: int = 1) -> tuple[Bytes, Bytes]:
    """Two states of one tensor, of which any part is the same."""
    size = width * draw(st.integers(0, 40 // width))
    base = draw(st.binary(min_size=size, max_size=size))
    mask = draw(st.binary(min_size=len(base), max_size=len(base)) | st.just(bytes(len(base))))
    return bytes_of(base), bytes_of(base) ^ bytes_of(mask)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "int64"])
@given(data=st.data())
def test_the_frames_of_all_tensors_make_the_next_version_of_their_base(dtype: str, data: st.DataObject) -> None:
    width = CODES[dtype][1]
    states = data.draw(st.lists(pairs(width), min_size=1, max_size=4))
    frames = {f"t{at}": encode(new, base.copy(), width) for at, (base, new) in enumerate(states)}
    contents = {f"t{at}": base.copy() for at, (base, _) in enumerate(states)}
    delta = memoryview(b"".join(frame for each in frames.values() for frame in each))
    manifest = manifest_of({name: [len(f) for f in each] if any(each) else [] for name, each in frames.items()}, dtype)
    for frame, piece in changes(manifest, contents, delta):
        apply_frame(frame, piece)
    for at, (_, new) in enumerate(states):
        assert np.array_equal(contents[f"t{at}"], new)


@given(pairs())
def test_encoding_leaves_the_base_as_the_new_version_for_the_next_delta(states: tuple[Bytes, Bytes]) -> None:
    base, new = states
    frames = encode(new, base)
    assert np.array_equal(base, new)
    assert all(not frame for frame in encode(new, base))
    assert len(frames) == -(-len(new) // PIECE)


@given(st.binary(min_size=PIECE, max_size=PIECE), st.data())
def test_a_frame_with_a_changed_byte_never_makes_other_bytes_than_it_was_made_for(
    content: bytes, data: st.DataObject
) -> None:
    new, base = bytes_of(content).reshape(-1, 2), bytes_of(bytes(PIECE)).reshape(-1, 2)
    frame = bytearray(encode_piece(new, base.copy()))
    if not frame:
        return
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        apply_frame(bytes(frame), base)
    except DamagedVersion:
        assert not base.any(), "a refused frame changes nothing"
    else:
        assert np.array_equal(base, new), "the byte was of no consequence"


@pytest.mark.parametrize("frame", [b"", b"no frame at all", zstandard.compress(b"longer than the piece")])
def test_a_frame_that_does_not_fit_is_refused(frame: bytes) -> None:
    with pytest.raises(DamagedVersion):
        apply_frame(frame, bytes_of(bytes(PIECE)).reshape(-1, 2))


@pytest.mark.parametrize(
    ("frames", "sentence"), [([1, 2, 3], "3 frames for 2 pieces"), ([1, 2], "6 bytes, and its frames 3")]
)
def test_frames_that_are_not_those_of_the_tensors_are_refused_before_anything_is_changed(
    frames: list[int], sentence: str
) -> None:
    contents = {"t": bytes_of(bytes(PIECE + 1))}
    with pytest.raises(DamagedVersion, match=sentence):
        list(changes(manifest_of({"t": frames}), contents, memoryview(b"123456")))
