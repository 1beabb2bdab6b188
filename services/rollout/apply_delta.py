"""The bytes of a version's tensors and the frames of a delta -> the bytes of the next version, in place."""

from collections.abc import Iterator, Mapping

import numpy as np
import zstandard
from numpy.typing import NDArray

from services.rollout.refused_files import DamagedVersion
from shared.safetensors_file import width_of
from shared.weight_files import VersionManifest

Bytes = NDArray[np.uint8]


def changes(
    manifest: VersionManifest, contents: Mapping[str, Bytes], delta: memoryview
) -> Iterator[tuple[memoryview, Bytes]]:
    """Each frame with the piece that it changes, [numbers, bytes of a number]; nothing is changed yet.

    Args:
        manifest: of the next version.
        contents: the bytes of each tensor of the base version, by name.
        delta: the whole file.

    Raises:
        DamagedVersion: the frames are not those of these tensors.
    """
    at = 0
    for tensor in manifest.tensors:
        content, width = contents[tensor.spec.name], width_of(tensor.spec)
        starts = range(0, len(content), manifest.piece) if tensor.frames else ()
        if len(starts) != len(tensor.frames):
            raise DamagedVersion(f"{tensor.spec.name} has {len(tensor.frames)} frames for {len(starts)} pieces")
        for start, nbytes in zip(starts, tensor.frames, strict=True):
            if nbytes:
                yield delta[at : at + nbytes], content[start : start + manifest.piece].reshape(-1, width)
            at += nbytes
    if at != len(delta):
        raise DamagedVersion(f"the delta has {len(delta)} bytes, and its frames {at}")


def apply_frame(frame: bytes | memoryview, piece: Bytes) -> None:
    """Exclusive or of one piece with what a frame holds, the first bytes of all numbers first; twice is as never.

    Raises:
        DamagedVersion: the frame does not decode to as many bytes; the piece is as it was.
    """
    try:
        if zstandard.frame_content_size(frame) != piece.size:
            raise DamagedVersion(f"a frame of the delta does not hold the {piece.size} bytes of its piece")
        changed = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedVersion(f"a frame of the delta does not decode: {error}") from None
    planes = np.frombuffer(changed, np.uint8).reshape(piece.shape[::-1])
    np.bitwise_xor(piece, planes.T, out=piece)
