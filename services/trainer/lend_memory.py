"""A staged bucket -> a handle by which one process of this machine reads it where it lies."""

import base64
from typing import Any

import torch

from shared.memory_handle import MemoryHandle


class LentMemory:
    """What is lent for one version. It stays valid until it is given back, whether or not somebody has read it."""

    def __init__(self) -> None:
        self._aliases: list[torch.Tensor] = []

    def lend(self, flat: torch.Tensor) -> MemoryHandle:
        """Of a bucket, to one reader; its bytes have been written by all that the current stream has done until now."""
        return self._lend_cuda(flat) if flat.is_cuda else _lend_shared(flat)

    def take_back(self) -> None:
        """Forget what was lent; the memory itself belongs to the stage."""
        was_cuda = any(alias.is_cuda for alias in self._aliases)
        self._aliases.clear()
        if was_cuda:
            torch.cuda.ipc_collect()

    def _lend_cuda(self, flat: torch.Tensor) -> MemoryHandle:
        # torch notes every reader at the storage, and frees the notes with it: an alias may go when the reader is done
        alias = torch.from_dlpack(flat)
        self._aliases.append(alias)
        storage: Any = alias.untyped_storage()
        index, handle, nbytes, offset, counter, counter_offset, event, required = storage._share_cuda_()
        return MemoryHandle(
            kind="cuda",
            nbytes=nbytes,
            handle=_text(handle),
            device=str(torch.cuda.get_device_properties(index).uuid),
            offset=offset,
            counter=_text(counter),
            counter_offset=counter_offset,
            event=_text(event),
            event_required=required,
        )


def _lend_shared(flat: torch.Tensor) -> MemoryHandle:
    storage: Any = flat.untyped_storage()
    manager, name, nbytes = storage._share_filename_cpu_()  # moves it to shared memory the first time
    storage._shared_incref()
    return MemoryHandle("shared", nbytes, _text(name), manager=_text(manager))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
