"""Matrices in blocks of fp8: how far off they are, and what becomes of odd blocks."""

import pytest
import torch

from services.trainer.fp8_blocks import from_blocks, to_blocks

SHAPES = [(128, 128), (256, 384), (64, 128), (130, 257), (1, 1), (300, 128), (5, 640)]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def matrix(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Blocks of very different sizes."""
    generator = torch.Generator().manual_seed(shape[0])
    rows = torch.linspace(-9, 5, shape[0]).exp()[:, None]
    return (torch.randn(shape, generator=generator) * rows).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_a_gpu_makes_the_same_blocks_as_a_cpu(shape: tuple[int, int], device: str) -> None:
    """But for the last bit of a scale: a GPU multiplies by the inverse of 448, in the reference, too."""
    weight = matrix(shape, torch.bfloat16)
    (numbers, scales), (wanted, wanted_scales) = to_blocks(weight.to(device)), to_blocks(weight)
    assert torch.equal(numbers.cpu().view(torch.uint8), wanted.view(torch.uint8))
    assert torch.allclose(scales.cpu(), wanted_scales, rtol=2**-22, atol=0)
    assert torch.equal(from_blocks(numbers, scales).cpu(), from_blocks(wanted, scales.cpu()))


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_off_by_half_a_step_of_fp8_at_most(shape: tuple[int, int]) -> None:
    """Of its own size by 1/16 at most, or by half of the smallest number of its block."""
    weight = matrix(shape, torch.float32)
    numbers, scales = to_blocks(weight)
    assert (numbers.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (tuple(numbers.shape), tuple(scales.shape)) == (shape, (-(-shape[0] // 128), -(-shape[1] // 128)))
    smallest = from_blocks(torch.full(shape, 2.0**-9).to(torch.float8_e4m3fn), scales, torch.float32)
    allowed = torch.maximum(weight.abs() / 16, smallest / 2) * (1 + 1e-5)
    assert ((from_blocks(numbers, scales, torch.float32) - weight).abs() <= allowed).all()


def test_a_block_of_zeros_stays_one_and_has_a_scale_that_divides() -> None:
    weight = torch.zeros(256, 128)
    weight[:128] = 1.0
    numbers, scales = to_blocks(weight)
    assert scales.flatten().tolist() == pytest.approx([1 / 448, 1e-4 / 448])
    assert torch.equal(from_blocks(numbers, scales, torch.float32), weight)


def test_a_number_that_is_none_is_seen_in_its_block_and_in_no_other() -> None:
    weight = torch.ones(128, 256)
    weight[3, 5] = torch.nan
    numbers, scales = to_blocks(weight)
    assert scales.isnan().tolist() == [[True, False]]
    assert torch.equal(from_blocks(numbers, scales, torch.float32)[:, 128:], weight[:, 128:])


def test_the_largest_number_of_a_block_is_the_largest_of_the_type() -> None:
    numbers, _ = to_blocks(matrix((256, 256), torch.bfloat16))
    assert numbers.float().abs().view(2, 128, 2, 128).amax((1, 3)).tolist() == [[448.0, 448.0]] * 2
