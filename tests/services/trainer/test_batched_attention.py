"""Attention by padded batches: what each sequence would be given alone, one graph for all packs, kept by recompute."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from services.trainer import attention_kernels, packed_attention
from services.trainer.attention_batches import plan_batches
from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.shard_model import decoder_layers
from services.trainer.batched_attention import batched_operator
from services.trainer.packed_attention import AttentionPlan, plan_attention
from services.trainer.policy_model import PolicyModel
from tests.services.trainer import math_attention
from tests.services.trainer.random_packs import assert_near, grouped_heads, pack_of, passed, policy, with_a_window

CPU = torch.device("cpu")
FULL, RAGGED, SHORT = [512] * 8, [1900, 1800, 1700, 1650, 600, 90, 33, 1], [40, 33, 2]
MIXED = [2048, 2000, 512, 512, 512, 512, 512, 512, 512, 512, 30]
PACKS = [RAGGED, [1024, 1024], FULL, SHORT, [2048, 2000, 30], [1030]]
KERNELS = ("padded_forward", "padded_backward", "packed_forward", "packed_backward")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


class Calls:
    """How often each kernel was called."""

    def __init__(self) -> None:
        self.of = dict.fromkeys(KERNELS, 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """On a CPU the kernels' work is done by the formulas, in float32."""
    counted = Calls()

    def counting(name: str) -> object:
        def call(*arguments: object) -> object:
            counted.of[name] += 1
            return getattr(math_attention, name)(*arguments)

        return call

    for name in KERNELS:
        monkeypatch.setattr(attention_kernels, name, counting(name))
    monkeypatch.setattr(packed_attention, "can_attend", lambda _: True)
    monkeypatch.setattr(packed_attention, "has_padded_kernel", lambda _: True)
    return counted


@pytest.fixture
def _fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def rows_of(lengths: list[int], heads: int, kv_heads: int, dim: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    counts = (heads, kv_heads, kv_heads)
    return [torch.randn(1, count, sum(lengths), dim, generator=random).bfloat16().float() for count in counts]


def attended(
    rows: list[torch.Tensor], plan: AttentionPlan, scaling: float | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attended values [1, tokens, heads, dim] and the gradients of the rows, all in float32."""
    own = [tensor.detach().requires_grad_() for tensor in rows]
    out, _ = packed_attention.packed_attention(torch.nn.Identity(), *own, None, scaling=scaling, packed=plan)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    return out.float(), [g.float() for g in torch.autograd.grad((out.float() * weights).sum(), own)]


def one_by_one(
    rows: list[torch.Tensor], lengths: list[int], scaling: float | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    own = [tensor.detach().requires_grad_() for tensor in rows]
    parts = zip(*(tensor.split(lengths, 2) for tensor in own), strict=True)
    outs = [scaled_dot_product_attention(*p, is_causal=True, scale=scaling, enable_gqa=True) for p in parts]
    out = torch.cat(outs, 2).transpose(1, 2)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return out, list(torch.autograd.grad((out * weights).sum(), own))


@pytest.mark.parametrize("lengths", [FULL, RAGGED, SHORT, MIXED])
@pytest.mark.parametrize(("heads", "kv_heads", "scaling"), [(2, 2, None), (4, 2, 0.3), (3, 1, None)])
def test_each_sequence_attends_as_it_would_alone(
    lengths: list[int], heads: int, kv_heads: int, scaling: float | None, calls: Calls
) -> None:
    rows = rows_of(lengths, heads, kv_heads, 8)
    found, gradients = attended(rows, plan_attention(lengths).to(CPU), scaling)
    exact, exact_gradients = one_by_one(rows, lengths, scaling)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    padded = sum(batch.longest > 0 for batch in plan_batches(lengths))
    assert (padded > 0) == (lengths is not SHORT)
    assert calls.of["padded_forward"] == calls.of["padded_backward"] == padded
    assert calls.of["packed_forward"] == calls.of["packed_backward"] == len(plan_batches(lengths)) - padded


def test_the_operator_keeps_the_rules_of_torch(calls: Calls) -> None:
    """Shapes that are told to the compiler are those that come out, and gradients go through its tracing unchanged."""
    plan = plan_attention(RAGGED)
    rows = [tensor[0].transpose(0, 1).contiguous().requires_grad_() for tensor in rows_of(RAGGED, 2, 1, 8)]
    torch.library.opcheck(batched_operator(), (*rows, plan.cu_seqlens, plan.batches, None))
    assert calls.of["padded_backward"]


def test_layers_with_a_window_are_attended_to_by_the_packed_kernel(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[int | None] = []

    def packed(query: torch.Tensor, *arguments: object) -> torch.Tensor:
        windows.append(arguments[-1] if isinstance(arguments[-1], int) else None)
        return query

    monkeypatch.setattr(packed_attention, "varlen_attention", packed)
    passed(policy(with_a_window()), pack_of(FULL[:2]))
    assert windows == [7, 7, 7]
    assert not any(calls.of.values())


def compiled(recompute: bool) -> PolicyModel:
    model = policy(grouped_heads())
    if recompute:
        recompute_layers(model.core)
    compile_model(model, model.core, recompute)
    return model


@pytest.mark.usefixtures("_fresh_graphs")
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_tracing_finds_one_graph_for_all_plans(recompute: bool, calls: Calls) -> None:
    """So what may tell numbers of tokens apart is the code that is made of the graph for a device."""
    fast, packs = policy(grouped_heads()), [*PACKS[1:], [600, 90, 1], [2], [1] * 5 + [3]]
    if recompute:
        recompute_layers(fast.core)
    for layer in decoder_layers(fast.core):
        layer.compile(dynamic=True, backend="aot_eager")
    for seed, lengths in enumerate(packs):
        passed(fast, pack_of(lengths, seed))
        assert counters["stats"]["unique_graphs"] == 1, lengths
    assert calls.of["padded_backward"] > 0
    assert calls.of["packed_backward"] > 0
    assert not counters["graph_break"]


def test_recomputed_layers_attend_once(calls: Calls) -> None:
    plain, again = policy(grouped_heads()), policy(grouped_heads())
    recompute_layers(again.core)
    packed, counts = pack_of(RAGGED), []
    for model in (plain, again):
        before = calls.of["padded_forward"]
        found = passed(model, packed)
        counts.append(calls.of["padded_forward"] - before)
        assert_near(found, passed(plain, packed), 1e-6)
    assert counts[0] == counts[1] > 0


def on_gpu(lengths: list[int], is_batched: bool) -> AttentionPlan:
    plan = plan_attention(lengths).to(torch.device("cuda"))
    return AttentionPlan(plan.cu_seqlens, plan.longest, plan.buckets, plan.batches, is_batched)


@pytest.mark.parametrize("lengths", [pytest.param(lengths, marks=gpu) for lengths in PACKS])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (16, 8, 128)])
def test_on_a_gpu_padded_batches_give_what_the_packed_kernel_gives(
    lengths: list[int], heads: int, kv_heads: int, dim: int
) -> None:
    if not attention_kernels.has_padded_kernel(torch.device("cuda")):
        pytest.skip("its kernels for padded batches are not used")
    exact, exact_gradients = one_by_one(rows_of(lengths, heads, kv_heads, dim), lengths, None)
    rows = [tensor.to("cuda", torch.bfloat16) for tensor in rows_of(lengths, heads, kv_heads, dim)]
    for is_batched in (False, True):
        found, gradients = attended(rows, on_gpu(lengths, is_batched))
        for ours, theirs in zip([found, *gradients], [exact, *exact_gradients], strict=True):
            assert (ours.cpu() - theirs).norm() <= 0.01 * theirs.norm(), is_batched


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_on_a_gpu_deterministic_algorithms_attend_as_packed(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert not attention_kernels.has_padded_kernel(torch.device(device))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_fresh_graphs")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("recompute", [pytest.param(recompute, marks=gpu) for recompute in (False, True)])
def test_on_a_gpu_compiled_layers_have_few_graphs_and_stay_near_float32(recompute: bool) -> None:
    fast = compiled(recompute)
    fast.core.to("cuda", torch.bfloat16)
    exact = policy(grouped_heads().to("cuda"))
    graphs: list[int] = []
    for seed, lengths in enumerate(PACKS):
        packed = pack_of(lengths, seed)
        assert packed.attention.to(torch.device("cuda")).is_batched or not attention_kernels.has_padded_kernel(
            torch.device("cuda")
        )
        found = passed(fast, packed)
        graphs.append(counters["stats"]["unique_graphs"])
        assert_near(found, passed(exact, packed), 0.05)
    assert not counters["graph_break"]
    assert graphs[-1] <= 2 + len({sum(lengths).bit_length() for lengths in PACKS})
