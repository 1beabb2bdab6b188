"""Compiled layers and scores: the same numbers, no graph of its own for a pack of another length, with sharding too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch._dynamo.utils import counters

from services.trainer.backends.compile_layers import compile_model
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.shard_model import shard_model, whole
from services.trainer.policy_model import PolicyModel
from tests.services.trainer.random_packs import assert_near, grouped_heads, pack_of, passed, policy, with_a_window

pytestmark = pytest.mark.filterwarnings("default")  # the compiler warns of what it does itself
PACKS = [[300], [64, 64, 64], [200, 90, 33, 7, 2], [128, 50, 3, 3], [40]]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
CPU, CUDA = "cpu", pytest.param("cuda", marks=gpu)


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compiled(model: PolicyModel, recompute: bool) -> PolicyModel:
    if recompute:
        recompute_layers(model.core)
    compile_model(model, model.core, recompute)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [grouped_heads, with_a_window])
def test_compiled_float32_gives_the_same_logprobs_entropies_and_gradients(make: object) -> None:
    assert callable(make)
    plain, fast = policy(make()), compiled(policy(make()), False)
    for seed, lengths in enumerate(PACKS[:3]):
        packed = pack_of(lengths, seed)
        assert_near(passed(fast, packed), passed(plain, packed), 1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("device", [CUDA])
def test_compiled_bfloat16_is_as_near_to_float32_as_eager_and_needs_few_graphs(device: str, recompute: bool) -> None:
    exact, plain = policy(grouped_heads().to(device)), policy(grouped_heads().to(device, torch.bfloat16))
    fast = compiled(policy(grouped_heads().to(device, torch.bfloat16)), recompute)
    graphs: list[int] = []
    for seed, lengths in enumerate(PACKS):
        packed = pack_of(lengths, seed)
        expected, usual, found = (passed(model, packed) for model in (exact, plain, fast))
        assert_near(usual, expected, 0.05)
        assert_near(found, expected, 0.05)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    # the compiler may tell powers of two of tokens apart, and one sequence from many
    assert graphs[-1] <= 3 + len({sum(lengths).bit_length() for lengths in PACKS})


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_sharded_and_compiled_model_gives_the_same_gradients(device: str, recompute: bool, tmp_path: Path) -> None:
    plain = policy(grouped_heads().to(device, torch.bfloat16))
    fast = compiled(policy(grouped_heads().to(device)), recompute)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("cuda:nccl,cpu:gloo", store=store, rank=0, world_size=1)
    try:
        shard_model(fast, fast.core, 1, torch.bfloat16, False)
        for seed, lengths in enumerate(PACKS):
            packed = pack_of(lengths, seed)
            found = {name: whole(tensor) for name, tensor in passed(fast, packed).items()}
            assert_near(found, passed(plain, packed), 0.05)
    finally:
        distributed.destroy_process_group()
