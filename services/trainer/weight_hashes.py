"""Named tensors -> the hashes by which an engine proves that it holds them, and one checksum that names them all."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch

from services.trainer.word_hash import word_hashes

VOCABULARY_ROWS = 64
"""SGLang pads embeddings and output heads with rows of zeros to a multiple of this."""
VOCABULARY = re.compile(r"(^|\.)(embed_tokens|lm_head)\.weight$")
FUSED = (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")))
"""Engines keep these parameters as one: name in the engine, names in the checkpoint, in their order of rows."""


def engine_checksums(
    tensors: Mapping[str, torch.Tensor], engine: str, at: torch.device | None = None
) -> dict[str, str]:
    """The hash of every parameter as SGLang's weight checker computes it, by the names of an engine with one rank.

    Args:
        engine: `cpu`, where the checker takes the first 8 bytes of the SHA-256 of a parameter's bytes; or `cuda`, where
            it takes their `word_hash`.
        at: the device that computes word hashes; tensors that lie elsewhere are copied there one after the other.
    """
    parameters = _engine_parameters(tensors)
    if engine == "cpu":
        return {name: _sha256(parts)[:16] for name, parts in parameters.items()}
    return dict(zip(parameters, word_hashes(parameters.values(), at), strict=True))


def digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the names of parameters and their hashes: the checksum of a version."""
    lines = (f"{name}={value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checksum(tensors: Mapping[str, torch.Tensor], engine: str) -> str:
    """Of a version with these tensors, for engines on this type of device."""
    return digest(engine_checksums(tensors, engine))


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


def _sha256(parts: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for part in parts:
        array: Any = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(memoryview(array))
    return found.hexdigest()
