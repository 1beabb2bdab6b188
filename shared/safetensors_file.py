"""Names, dtypes and shapes of tensors <-> the header of a safetensors file, which says where their bytes are.

The format is 8 bytes with the length of the header, the header as JSON, then the bytes of all tensors without a gap.
Reading and writing it here needs no torch, and no copy of the tensors.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shared.messages import TensorSpec

CODES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""Torch's name of a type -> the format's, and bytes of an element."""
LONGEST_HEADER = 100 * 2**20
"""As the format's own reader has it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the bytes of a tensor are in its file."""

    start: int
    nbytes: int


def header_of(specs: Sequence[TensorSpec]) -> bytes:
    """What stands before the bytes of these tensors, which follow in this order."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        end = at + nbytes_of(spec)
        tree[spec.name] = {"dtype": CODES[spec.dtype][0], "shape": spec.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> dict[str, Any]:
    """What a file says about its tensors: of each name its dtype, shape and data_offsets.

    Raises:
        ValueError: it is no safetensors file.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > LONGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        tree = cast(dict[str, Any], json.loads(opened.read(size)))
    return {name: about for name, about in tree.items() if name != "__metadata__"}


def shapes_in(folder: Path) -> dict[str, list[int]]:
    """Of all tensors in the safetensors files of a folder, by name; none if there are no such files.

    Raises:
        ValueError, OSError: one of them cannot be read.
    """
    headers = [read_header(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: cast(list[int], about["shape"]) for header in headers for name, about in header.items()}


def nbytes_of(spec: TensorSpec) -> int:
    """Bytes of a tensor."""
    return math.prod(spec.shape) * width_of(spec)


def width_of(spec: TensorSpec) -> int:
    """Bytes of one number of a tensor."""
    return CODES[spec.dtype][1]


def spans_of(specs: Sequence[TensorSpec]) -> dict[str, Span]:
    """Where the bytes of each tensor are in the file that `header_of` begins."""
    at, spans = len(header_of(specs)), dict[str, Span]()
    for spec in specs:
        spans[spec.name] = Span(at, nbytes_of(spec))
        at += nbytes_of(spec)
    return spans
