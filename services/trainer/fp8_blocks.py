"""A matrix -> float8_e4m3fn and one scale for each block of 128 x 128 numbers, and back."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from shared.fp8_checkpoint import BLOCK

LARGEST = 448.0
"""Of float8_e4m3fn."""
SMALLEST_MAXIMUM = 1e-4
"""What a block without a larger number counts as: its scale is 1e-4 / 448, also where all of it is 0."""


@torch.no_grad()
def to_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix, block by block, so that its largest number becomes the largest of the type.

    DeepGEMM's `per_block_cast_to_fp8` with scales in float32, bit for bit: x * (448 / max|x|) rounded to the nearest,
    and max|x| / 448 (DeepSeek-V3, arXiv:2412.19437, section 3.3), by the operations of torch on the same device.

    Args:
        weight: [n, k], bfloat16 or float32, on any device.

    Returns:
        float8_e4m3fn, [n, k], and float32, [ceil(n / 128), ceil(k / 128)].
    """
    n, k = weight.shape
    ragged = (0, -k % BLOCK, 0, -n % BLOCK)
    whole = pad(weight, ragged) if any(ragged) else weight
    blocks = whole.reshape(whole.shape[0] // BLOCK, BLOCK, whole.shape[1] // BLOCK, BLOCK)
    largest = torch.linalg.vector_norm(blocks, torch.inf, dim=(1, 3), keepdim=True).float().clamp(SMALLEST_MAXIMUM)
    scaled = (blocks * (LARGEST / largest)).to(torch.float8_e4m3fn).view(whole.shape)
    return scaled[:n, :k].contiguous(), (largest / LARGEST).view(blocks.shape[0], blocks.shape[2])


@torch.no_grad()
def from_blocks(numbers: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What they stand for: the product in float32, rounded to `dtype`, as SGLang's `block_quant_dequant` has it."""
    n, k = numbers.shape
    of_rows = scales.repeat_interleave(BLOCK, 0)[:n]
    return (numbers.float() * of_rows.repeat_interleave(BLOCK, 1)[:, :k]).to(dtype)
