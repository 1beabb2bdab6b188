"""The hash of a parameter on a GPU: what SGLang's own kernel makes of it, the formula in numpy, and the GPU itself."""

import numpy as np
import pytest
import torch

from services.trainer.word_hash import TILE, word_hashes

# Shape and type of a tensor, its seed, and what SGLang's kernel (0.5.17 and 0.5.23 alike) makes of it.
KNOWN = [
    ((3, 5), torch.float32, 8, "f7e10686dc57b3f3"),
    ((7,), torch.bfloat16, 7, "7d42cf8e9795af3c"),
    ((1024,), torch.bfloat16, 1024, "b684e2b052d05eb1"),
    ((TILE,), torch.float32, 8192, "c073bae7ca013466"),
    ((TILE + 1,), torch.float32, 8193, "61ba287884ed89b7"),
    ((130, 257), torch.bfloat16, 387, "496645364898aa3c"),
    ((5, TILE), torch.float32, 8197, "41896959dc823b52"),
]


def known(index: int) -> torch.Tensor:
    shape, dtype, seed, _ = KNOWN[index]
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def formula(tensor: torch.Tensor) -> str:
    """The definition of `word_hash`, with numpy's unsigned numbers, word by word and tile by tile."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), "<u4")
    total = 0
    for start in range(0, len(words), TILE):
        tile, place = words[start : start + TILE], np.arange(start, min(start + TILE, len(words)), dtype=np.uint32)
        for multiplier, seed, turn, shift in (
            (0x27D4EB2D, 0x243F6A88, 15, 32),
            (0x165667B1, 0x243F6A88 * 0x9E3779B1 ^ 0xDEADBEEF, 13, 0),
        ):
            offset = place * np.uint32(multiplier) + np.uint32(seed % 2**32)
            turned = (place << np.uint32(turn)) | (place >> np.uint32(32 - turn))
            mixed = fmix32(tile ^ (offset ^ turned))
            tile_sum = np.array([int(mixed.sum(dtype=np.uint64)) % 2**32 ^ (len(words) * 4)], np.uint32)
            total += int(fmix32(tile_sum)[0]) << shift
    total %= 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        total = (total ^ (total >> shift)) * factor % 2**64
    return f"{total:016x}"


def fmix32(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize("index", range(len(KNOWN)))
def test_the_hash_is_the_one_that_sglang_computes_on_a_gpu(index: int) -> None:
    assert word_hashes([[known(index)]]) == [KNOWN[index][-1]]
    assert formula(known(index)) == KNOWN[index][-1]


def test_many_parameters_at_once_have_the_hashes_of_each() -> None:
    assert word_hashes([[known(index)] for index in range(len(KNOWN))]) == [entry[-1] for entry in KNOWN]


def test_a_parameter_in_parts_has_the_hash_of_the_whole() -> None:
    whole = torch.randn(3 * TILE + 17)
    assert word_hashes([whole.split([5, TILE, 12, 2 * TILE])]) == [formula(whole)]


def test_a_parameter_that_begins_within_a_word_of_its_bucket_is_read_right() -> None:
    flat = torch.randn(4001).bfloat16()
    assert word_hashes([[flat[1:]], [flat[:7]]]) == [formula(flat[1:]), formula(flat[:7])]


def test_one_changed_bit_and_two_changed_places_change_the_hash() -> None:
    tensor = torch.randn(2 * TILE)
    bit, swapped = tensor.clone(), tensor.clone()
    bit.view(torch.int32)[TILE + 3] ^= 1
    swapped[[4, TILE + 4]] = swapped[[TILE + 4, 4]]
    assert len(set(word_hashes([[tensor], [bit], [swapped]]))) == 3


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler warns of what it does itself
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_hash_is_the_same_and_that_of_the_installed_sglang() -> None:
    tensors = [known(index) for index in range(len(KNOWN))] + [torch.randn(3_000_001).bfloat16()]
    found = word_hashes([[tensor.cuda()] for tensor in tensors])
    assert found == [formula(tensor) for tensor in tensors]
    assert word_hashes([[tensor.pin_memory()] for tensor in tensors], torch.device("cuda")) == found
    kernel = pytest.importorskip("sglang.kernels.ops.memory.gpu_tensor_hash")
    assert found == [f"{kernel.gpu_tensor_hash(tensor.cuda()):016x}" for tensor in tensors]
