"""Tensors by name, sharded or not <-> a folder of torch's distributed checkpoint, readable by any number of ranks."""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from services.trainer.backend import State
from services.trainer.ranks import Ranks
from shared.errors import RunRejected

SEPARATOR = "/"

# said on every save by one process, which has no group by its own choice
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def begin_writing(folder: Path, state: State, ranks: Ranks) -> Future[Any]:
    """Copy the state; when this returns, training may go on, and the future is done once the files are on disk.

    Every rank must call it, and none may begin another one before its future is done.
    """
    begun = async_save(
        cast(dict[str, Any], _flat(state)),
        storage_writer=FileSystemWriter(folder, sync_files=True, overwrite=True),
        process_group=ranks.writers,
        no_dist=ranks.writers is None,
    )
    return cast(Future[Any], begun)


def fill(folder: Path, state: State, ranks: Ranks, instead: str) -> None:
    """Read a folder into tensors of the same names and shapes, however they are sharded now; every rank must call it.

    Args:
        instead: what to do with a folder that does not fit, in words.

    Raises:
        RunRejected: a tensor is missing, left over or of another shape.
    """
    flat = _flat(state)
    _check(folder, flat, instead)
    load(
        cast(dict[str, Any], flat),
        storage_reader=FileSystemReader(folder),
        process_group=ranks.writers,
        no_dist=ranks.writers is None,
    )


def read_whole(folder: Path) -> State:
    """All tensors of a folder, unsharded, on the CPU."""
    flat = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in _stored(folder).items()}
    load(cast(dict[str, Any], flat), storage_reader=FileSystemReader(folder), no_dist=True)
    state: State = {}
    for name, tensor in flat.items():
        part, _, key = name.partition(SEPARATOR)
        state.setdefault(part, {})[key] = tensor
    return state


def _flat(state: State) -> dict[str, torch.Tensor]:
    return {f"{part}{SEPARATOR}{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: about for name, about in stored.items() if isinstance(about, TensorStorageMetadata)}


def _check(folder: Path, wanted: Mapping[str, torch.Tensor], instead: str) -> None:
    stored = _stored(folder)
    for name in sorted(wanted.keys() ^ stored.keys()):
        side = "misses" if name in wanted else "holds the unknown"
        raise RunRejected(f"{folder} {side} tensor {name}; it belongs to another model: {instead}")
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != tuple(stored[name].size):
            raise RunRejected(
                f"the tensor {name} in {folder} is {list(stored[name].size)}, the model's {list(tensor.shape)}; it"
                f" belongs to another model: {instead}"
            )
