"""Named parameters -> flat buckets to broadcast, their manifest, and the hashes that prove them."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from shared.messages import TensorSpec

VOCABULARY_ROWS = 64
"""SGLang pads embeddings and output heads with rows of zeros to a multiple of this."""
VOCABULARY = re.compile(r"(^|\.)(embed_tokens|lm_head)\.weight$")
FUSED = (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")))
"""Engines keep these parameters as one: name in the engine, names in the checkpoint, in their order of rows."""


class WeightBuckets:
    """One staged copy of the weights. Each bucket is one flat tensor of bytes; the layout never changes."""

    def __init__(self, layout: list[list[TensorSpec]], device: torch.device) -> None:
        self.layout = layout
        self.flat: list[torch.Tensor] = []
        self.tensors: dict[str, torch.Tensor] = {}
        """Views into the buckets, by name, in the order of the layout."""
        for bucket in layout:
            sizes = [_bytes(spec) for spec in bucket]
            flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
            self.flat.append(flat)
            for spec, part in zip(bucket, flat.split(sizes), strict=True):
                self.tensors[spec.name] = part.view(_dtype(spec.dtype)).view(spec.shape)

    @torch.no_grad()
    def copy_from(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite every tensor; when it returns, the sources may change.

        Raises:
            KeyError: a tensor is not in the layout.
            ValueError: a tensor of the layout was not given.
        """
        missing = set(self.tensors)
        for name, tensor in named_tensors:
            self.tensors[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise ValueError(f"{len(missing)} tensors were not given to be staged, such as {min(missing)}")
        if self.flat[0].is_cuda:
            torch.cuda.current_stream(self.flat[0].device).synchronize()

    @property
    def backend(self) -> str:
        """The kind of process group that can send them."""
        return "nccl" if self.flat[0].is_cuda else "gloo"

    @property
    def nbytes(self) -> int:
        return sum(flat.numel() for flat in self.flat)


def plan_buckets(named_tensors: Iterable[tuple[str, torch.Tensor]], limit_bytes: int) -> list[list[TensorSpec]]:
    """Fill buckets up to `limit_bytes`; a larger tensor gets one of its own.

    Wide types come first, so that every tensor starts at a multiple of its element size, as engines require.
    """
    specs = [TensorSpec(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in named_tensors]
    specs.sort(key=lambda spec: -_dtype(spec.dtype).itemsize)
    buckets: list[list[TensorSpec]] = []
    filled = limit_bytes
    for spec in specs:
        if filled + _bytes(spec) > limit_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(spec)
        filled += _bytes(spec)
    return buckets


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of all tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def engine_checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The hash of every parameter as SGLang's weight checker computes it on the CPU, by the engine's names.

    It is the first 8 bytes of the SHA-256 of the parameter's bytes, in an engine with one rank. On a GPU the checker
    hashes with a kernel of its own, which nothing here can predict: then the answer is empty.
    """
    if any(tensor.is_cuda for tensor in tensors.values()):
        return {}
    return {
        name: hashlib.sha256(b"".join(map(_raw, parts)) if len(parts) > 1 else _raw(parts[0])).hexdigest()[:16]
        for name, parts in _engine_parameters(tensors).items()
    }


def _engine_parameters(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Name in the engine -> the tensors whose rows it holds, one after the other."""
    parameters: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        fused, parts = _fused(name, tensors)
        parameters[fused] = [tensors[part] for part in parts]
        if VOCABULARY.search(name) and tensor.shape[0] % VOCABULARY_ROWS:
            rows = VOCABULARY_ROWS - tensor.shape[0] % VOCABULARY_ROWS
            parameters[name].append(tensor.new_zeros((rows, *tensor.shape[1:])))
    return parameters


def _fused(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, list[str]]:
    for fused, parts in FUSED:
        for part in parts:
            around = name.split(f".{part}.")
            names = [f".{each}.".join(around) for each in parts]
            if len(around) == 2 and all(each in tensors for each in names):
                return f".{fused}.".join(around), names
    return name, [name]


def _raw(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _bytes(spec: TensorSpec) -> int:
    return torch.Size(spec.shape).numel() * _dtype(spec.dtype).itemsize


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
