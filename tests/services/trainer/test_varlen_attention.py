"""On a GPU: attention by boundaries equals attention by buckets, nothing leaks, and bfloat16 stays near float32."""

import pytest
import torch

from services.trainer.packed_attention import packed_attention, plan_attention
from services.trainer.varlen_attention import can_attend
from tests.services.trainer.random_packs import grouped_heads, pack_of, passed, policy, with_a_window

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LENGTHS = [700, 129, 128, 64, 33, 17, 2, 1]
CUDA = torch.device("cuda")


def attend(
    rows: list[torch.Tensor], lengths: list[int], window: int | None, dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The attended values and the gradients of queries, keys and values, all in float32."""
    own = [tensor.to(CUDA, dtype).requires_grad_() for tensor in rows]
    assert can_attend(own[0][0].transpose(0, 1)) == (dtype is torch.bfloat16)
    plan = plan_attention(lengths).to(CUDA)
    attended, _ = packed_attention(torch.nn.Identity(), *own, None, sliding_window=window, packed=plan)
    weights = torch.linspace(-1, 1, attended.numel(), device=CUDA).reshape(attended.shape)
    gradients = torch.autograd.grad((attended.float() * weights).sum(), own)
    return attended.float(), [gradient.float() for gradient in gradients]


def random_rows(heads: int, kv_heads: int, dim: int, tokens: int) -> list[torch.Tensor]:
    """Queries, keys and values [1, heads, tokens, dim] that bfloat16 holds exactly."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1, count, tokens, dim) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=random).bfloat16().float() for shape in shapes]


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (16, 8, 128), (8, 1, 32)])
def test_boundaries_give_what_buckets_give_on_ragged_packs(
    heads: int, kv_heads: int, dim: int, window: int | None
) -> None:
    rows = random_rows(heads, kv_heads, dim, sum(LENGTHS))
    exact, exact_gradients = attend(rows, LENGTHS, window, torch.float32)
    found, gradients = attend(rows, LENGTHS, window, torch.bfloat16)
    for ours, theirs in zip([found, *gradients], [exact, *exact_gradients], strict=True):
        assert (ours - theirs).norm() <= 0.01 * theirs.norm()


def test_a_change_in_one_sequence_changes_no_other() -> None:
    rows = random_rows(16, 8, 128, sum(LENGTHS))
    before, gradients = attend(rows, LENGTHS, None, torch.bfloat16)
    changed = slice(700, 829)
    for tensor in rows:
        tensor[:, :, changed] = 3.0
    after, gradients_after = attend(rows, LENGTHS, None, torch.bfloat16)
    others = torch.ones(sum(LENGTHS), dtype=torch.bool)
    others[changed] = False
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, ~others], after[:, ~others])
    for old, new in zip(gradients, gradients_after, strict=True):
        # the order in which blocks add to a gradient is not fixed
        torch.testing.assert_close(old[:, :, others], new[:, :, others], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("make", [grouped_heads, with_a_window])
def test_bfloat16_logprobs_are_near_those_of_float32(make: object) -> None:
    assert callable(make)
    packed = pack_of(LENGTHS)
    exact = passed(policy(make().to(CUDA)), packed)["logprobs"]
    low = passed(policy(make().to(CUDA, torch.bfloat16)), packed)["logprobs"]
    assert low.dtype == torch.float32
    assert float((low - exact).abs().max()) < 0.05
