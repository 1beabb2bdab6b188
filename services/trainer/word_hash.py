"""Parameters on a GPU -> the 64-bit hashes that SGLang's weight checker has for them there, in a few kernels.

SGLang (0.5.17 to 0.5.23) hashes a tensor on a GPU as its 32-bit words, padded with zeros to a whole word. The hash of
the word w at position i is fmix32(w ^ place(i)), with place(i) = (i * multiplier + seed) ^ rotl32(i, rotation). The
hashes of a tile of 8,192 words are added up, the sum xor the tensor's number of bytes goes through fmix32 again, and
the sums of two such hashes of a tile, one with each set of constants, are the halves of a 64-bit number. The numbers
of all tiles are added up, and a finalizer mixes the result. All sums and products are modulo 2^32 or 2^64.

fmix32 is the finalizer of MurmurHash3 (Appleby 2011); the last one is Stafford's mix 13 (2011), known from SplitMix64.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TILE = 8192
SEED = 0x243F6A88
HALVES = (
    (0x27D4EB2D, SEED, 15),
    (0x165667B1, (SEED * 0x9E3779B1) ^ 0xDEADBEEF, 13),
)
"""Multiplier, seed and rotation of the upper and of the lower half."""

TileHashes = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def word_hashes(parameters: Iterable[Sequence[Tensor]], at: torch.device | None = None) -> list[str]:
    """Of each parameter, given as the tensors whose bytes it holds one after the other.

    Args:
        at: where to compute them; there is room for one parameter beside those that lie there. As a rule where the
            first tensor lies.
    """
    found = [_tiles(parts, at) for parts in parameters]
    hashes = _compiled() if found[0].last.is_cuda else tile_hashes
    last = torch.stack([tiles.last for tiles in found])
    places = [[tiles.start for tiles in found], [tiles.size for tiles in found]]
    starts, sizes = torch.tensor(places, dtype=torch.int32, device=last.device)
    sums = hashes(last, starts, sizes) + torch.stack([tiles.sum for tiles in found])
    return [f"{_finish(value % 2**64):016x}" for value in sums.tolist()]


def tile_hashes(words: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
    """The number of each tile, as int64.

    Args:
        words: int32, [tiles, TILE]; what lies beyond the end of a tensor does not count.
        starts: int32, [tiles]; the position of each tile's first word in its tensor.
        sizes: int32, [tiles]; how many words that tensor has.
    """
    positions = starts[:, None] + torch.arange(TILE, dtype=torch.int32, device=words.device)
    upper = _half(words, positions, sizes[:, None], *HALVES[0])
    lower = _half(words, positions, sizes[:, None], *HALVES[1])
    return (upper.long() << 32) | (lower.long() & 0xFFFFFFFF)


def _half(words: Tensor, positions: Tensor, sizes: Tensor, multiplier: int, seed: int, rotation: int) -> Tensor:
    turned = (positions << rotation) | _shift(positions, 32 - rotation)
    places = (positions * _signed(multiplier) + _signed(seed)) ^ turned
    mixed = torch.where(positions < sizes, _fmix(words ^ places), 0)
    return _fmix(mixed.sum(1, dtype=torch.int32) ^ (sizes[:, 0] * 4))


def _fmix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 16)) * _signed(0x85EBCA6B)
    x = (x ^ _shift(x, 13)) * _signed(0xC2B2AE35)
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros: torch has few operations on unsigned integers, and shifts signed ones by their sign."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _signed(constant: int) -> int:
    return (constant + 2**31) % 2**32 - 2**31


def _finish(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """A parameter of which all tiles but the last one are hashed."""

    sum: Tensor
    """int64, the sum of their numbers."""
    last: Tensor
    """int32, [TILE]; padded with zeros. It is never empty, for an empty tile has a number too."""
    start: int
    size: int
    """Both in words."""


def _tiles(parts: Sequence[Tensor], at: torch.device | None) -> _Tiles:
    words = _words([part.to(at, non_blocking=True) for part in parts] if at else parts)
    size, device = words.numel(), words.device
    start = (size - 1) // TILE * TILE
    last = torch.zeros(TILE, dtype=torch.int32, device=device)
    last[: size - start] = words[start:]
    if not start:
        return _Tiles(torch.zeros((), dtype=torch.int64, device=device), last, start, size)
    hashes = _compiled() if words.is_cuda else tile_hashes
    starts = torch.arange(0, start, TILE, dtype=torch.int32, device=device)
    sizes = torch.full_like(starts, size)
    return _Tiles(hashes(words[:start].view(-1, TILE), starts, sizes).sum(), last, start, size)


def _words(parts: Sequence[Tensor]) -> Tensor:
    """int32, one after the other; a copy only where they do not lie in memory like that."""
    raw = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
    missing = -sum(part.numel() for part in raw) % 4
    if missing:
        raw.append(raw[0].new_zeros(missing))
    whole = raw[0] if len(raw) == 1 else torch.cat(raw)
    return (whole.clone() if whole.storage_offset() % 4 else whole).view(torch.int32)


@cache
def _compiled() -> TileHashes:
    """One kernel instead of forty that each read and write all words."""
    return torch.compile(tile_hashes, dynamic=True, fullgraph=True)
