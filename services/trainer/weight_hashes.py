"""Named tensors -> the hashes by which an engine proves that it holds them, and one checksum that names them all."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from services.trainer.fp8_blocks import from_blocks
from services.trainer.word_hash import word_hashes
from shared.fp8_checkpoint import SCALE, scale_name

VOCABULARY_ROWS = 64
"""SGLang pads embeddings and output heads with rows of zeros to a multiple of this."""
VOCABULARY = re.compile(r"(^|\.)(embed_tokens|lm_head)\.weight$")
FUSED = (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")))
"""Engines keep these parameters as one: name in the engine, names in the checkpoint, in their order of rows."""


def engine_checksums(
    tensors: Mapping[str, torch.Tensor], engine: str, at: torch.device | None = None
) -> dict[str, str]:
    """The hash of every parameter as SGLang's weight checker computes it, by the names of an engine with one rank.

    A matrix in fp8 has no hash of its numbers and none of its scales there, but one of what they stand for in bfloat16.

    Args:
        engine: `cpu`, where the checker takes the first 8 bytes of the SHA-256 of a parameter's bytes; or `cuda`, where
            it takes their `word_hash`.
        at: the device that computes word hashes; tensors that lie elsewhere are copied there one after the other.
    """
    parameters = _engine_parameters(tensors)
    held = ([*_held(name, parts, tensors, at)] for name, parts in parameters.items())
    if engine == "cpu":
        return {name: _sha256(parts)[:16] for name, parts in zip(parameters, held, strict=True)}
    return dict(zip(parameters, word_hashes(held, at), strict=True))


def digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the names of parameters and their hashes: the checksum of a version."""
    lines = (f"{name}={value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checksum(tensors: Mapping[str, torch.Tensor], engine: str) -> str:
    """Of a version with these tensors, for engines on this type of device."""
    return digest(engine_checksums(tensors, engine))


def _engine_parameters(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Name in the engine -> the tensors whose rows it holds, one after the other."""
    return dict(_fused(name, tensors) for name in tensors if not name.endswith(SCALE))


def _held(
    name: str, parts: Sequence[str], tensors: Mapping[str, torch.Tensor], at: torch.device | None
) -> Iterator[torch.Tensor]:
    """The rows of one parameter."""
    for part in parts:
        tensor, scales = tensors[part], tensors.get(scale_name(part))
        yield tensor if scales is None else from_blocks(tensor.to(at), scales.to(at))
    if VOCABULARY.search(name) and (short := -tensors[name].shape[0] % VOCABULARY_ROWS):
        yield tensors[name].new_zeros((short, *tensors[name].shape[1:]))


def _fused(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, list[str]]:
    for fused, parts in FUSED:
        for part in parts:
            around = name.split(f".{part}.")
            names = [f".{each}.".join(around) for each in parts]
            if len(around) == 2 and all(each in tensors for each in names):
                return f".{fused}.".join(around), names
    return name, [name]


def _sha256(parts: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for part in parts:
        array: Any = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(memoryview(array))
    return found.hexdigest()
