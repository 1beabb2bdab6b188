"""The safetensors files of a folder -> the bytes of each tensor, mapped into memory, and whether they are right."""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.rollout.copy_lock import Check
from shared.content_hash import content_hash
from shared.safetensors_file import header_of, spans_of
from shared.weight_files import Shard, StoredTensor

Bytes = NDArray[np.uint8]
THREADS = 4


def map_tensors(folder: Path, shards: Sequence[Shard], change: bool = False) -> dict[str, Bytes]:
    """By name; what is written to them is written to the files.

    Raises:
        ValueError: a file is not the one that the shard describes.
        OSError: it cannot be read.
    """
    contents: dict[str, Bytes] = {}
    for shard in shards:
        header, spans = header_of(shard.specs), spans_of(shard.specs)
        with (folder / shard.file).open("r+b" if change else "rb") as file:
            if file.read(len(header)) != header or file.seek(0, 2) != len(header) + sum(
                s.nbytes for s in spans.values()
            ):
                raise ValueError(f"{shard.file} does not hold the tensors that it should")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if change else mmap.ACCESS_READ)
        whole = np.frombuffer(mapped, np.uint8)
        contents |= {name: whole[span.start : span.start + span.nbytes] for name, span in spans.items()}
    return contents


def find_damage(contents: dict[str, Bytes], tensors: Sequence[StoredTensor], check: Check = lambda: None) -> str:
    """A sentence about the tensors whose bytes do not have their hash; empty if all have."""
    wrong: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(content_hash, (contents[tensor.spec.name] for tensor in tensors))
        for tensor, found in zip(tensors, hashes, strict=True):
            check()
            if found != tensor.hash:
                wrong.append(tensor.spec.name)
    return f"{len(wrong)} of {len(tensors)} tensors are not what was written, such as {wrong[0]}" if wrong else ""
