"""The tensors of a model on its device <-> the same bits in the host's memory, so that others can use the device's."""

from collections.abc import Callable, Iterable

import torch

CHUNK_BYTES = 2**30
"""Pinned memory is given in powers of two: tensors are packed together into pieces of this size, or larger ones."""
ALIGNMENT = 64


class HostMemory:
    """Moves the data of tensors, which stay the same objects: whoever holds them, as an optimizer, holds them still."""

    def __init__(self, tensors: Callable[[], Iterable[torch.Tensor]], device: torch.device) -> None:
        """`tensors` is asked once, when they leave the device for the first time; those that lie elsewhere stay."""
        self._find, self._device = tensors, device
        self._moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.is_away = False

    @property
    def nbytes(self) -> int:
        """What the tensors take on the device; 0 before they left it for the first time."""
        return sum(host.nbytes for _, host in self._moved)

    @torch.no_grad()
    def leave(self) -> None:
        """Copy everything to the host and give the device's memory back to its driver; of no effect there."""
        if self.is_away:
            return
        self._moved = self._moved or _places(self._find(), self._device)
        for tensor, host in self._moved:
            host.copy_(tensor, non_blocking=True)
        self._wait()
        for tensor, host in self._moved:
            tensor.data = host
        self.is_away = True
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def come_back(self) -> None:
        """Copy everything to the device; OutOfMemoryError if it is not free, and then nothing has moved."""
        if not self.is_away:
            return
        there = [torch.empty_like(host, device=self._device) for _, host in self._moved]
        for (tensor, host), own in zip(self._moved, there, strict=True):
            own.copy_(host, non_blocking=True)
            tensor.data = own
        self._wait()
        self.is_away = False

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _places(tensors: Iterable[torch.Tensor], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each tensor that is on the device, once, and room for it on the host; the large ones first."""
    found = {id(tensor): tensor for tensor in tensors if tensor.device.type == device.type}
    chunks: list[_Chunk] = []
    places: list[tuple[torch.Tensor, torch.Tensor]] = []
    for tensor in sorted(found.values(), key=lambda each: -each.nbytes):
        chunk = next((each for each in chunks if each.left >= tensor.nbytes), None)
        if chunk is None:
            chunk = _Chunk(tensor.nbytes, device)
            chunks.append(chunk)
        places.append((tensor, chunk.room_for(tensor)))
    return places


class _Chunk:
    """One piece of host memory for several tensors."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        """`nbytes`: the least that it must hold."""
        is_cuda = device.type == "cuda"
        size = max(CHUNK_BYTES, 2 ** (nbytes - 1).bit_length()) if is_cuda else nbytes
        self._bytes, self._filled = torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda), 0

    @property
    def left(self) -> int:
        return self._bytes.numel() - self._filled

    def room_for(self, tensor: torch.Tensor) -> torch.Tensor:
        """A part of the piece, as a tensor of the same type, shape and strides."""
        part = self._bytes[self._filled : self._filled + tensor.nbytes].view(tensor.dtype)
        self._filled += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
