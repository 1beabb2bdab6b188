"""Adapters: what they add, what stays as it is, and that their folder means the same to the peft library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.trainer.backends.adapt_layers import AdapterShape, adapt_layers, without_adapters
from services.trainer.backends.recompute_layers import recompute_layers
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.frozen_model import UntrainedPolicy
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import Predictions
from services.trainer.packing import PackedSequences
from shared.errors import RunRejected
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.recorded_groups import small_model

CPU = torch.device("cpu")
ADAMW = AdamW((0.9, 0.95), 1e-8, 0.1, 1.0)
SHAPE = AdapterShape(4, 8.0, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


def adapted(folder: Path, dtype: torch.dtype = torch.float32, shape: AdapterShape = SHAPE) -> TorchBackend:
    model = load_policy(folder, False, 1.0, CPU)
    adapt_layers(model.core, shape, 0)
    return TorchBackend(model, dtype, ADAMW, folder)


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> TorchBackend:
    return TorchBackend(load_policy(folder, False, 1.0, CPU), dtype, ADAMW, folder)


def train(backend: TorchBackend, steps: int = 3) -> None:
    for step in range(steps):
        backend.train_step(of_groups(range(step * 3, step * 3 + 3)), sft_loss, 1e-2, step)


def packs() -> list[PackedSequences]:
    return [part.packed for part in of_groups(range(50, 54))]


def logprobs(said: Sequence[Predictions]) -> torch.Tensor:
    return torch.cat([part.logprobs for part in said])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_training_and_without_its_adapters_the_model_says_what_it_said(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = small_model(tmp_path / "model")
    policy, before = adapted(folder, dtype), logprobs(plain(folder, dtype).predict(packs()))
    assert torch.equal(logprobs(policy.predict(packs())), before)
    train(policy)
    assert not torch.allclose(logprobs(policy.predict(packs())), before, atol=0.1)
    assert torch.equal(logprobs(UntrainedPolicy(policy).predict(packs())), before)


def test_nothing_but_adapters_learns_and_their_state_is_all_that_is_kept(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    policy = adapted(folder, shape=AdapterShape(4, 8.0, ("q_proj", "v_proj")))
    train(policy)
    names = {f"core.model.layers.0.self_attn.{layer}.lora_{part}" for layer in ("q_proj", "v_proj") for part in "AB"}
    assert policy.state()["weights"].keys() == names
    published, before = dict(policy.named_tensors()), load_file(folder / "model.safetensors")
    assert published.keys() == before.keys()
    moved = {name for name, tensor in before.items() if not torch.equal(published[name], tensor)}
    assert moved == {f"model.layers.0.self_attn.{layer}.weight" for layer in ("q_proj", "v_proj")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_of_adapters_comes_back_and_training_goes_on_with_the_same_bits(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = small_model(tmp_path / "model")
    one, two = adapted(folder, dtype), adapted(folder, dtype)
    train(one)
    two.load_state({part: {name: t.clone() for name, t in named.items()} for part, named in one.state().items()})
    for each in (one, two):
        train(each)
    for part, tensors in one.state().items():
        assert all(torch.equal(two.state()[part][name], tensor) for name, tensor in tensors.items()), part


def test_the_merged_model_and_the_folder_for_peft_say_what_the_adapters_say(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    policy = adapted(folder)
    train(policy)
    (tmp_path / "export").mkdir()
    policy.export(tmp_path / "export")
    said = logprobs(policy.predict(packs()))
    merged = plain(tmp_path / "export").predict(packs())
    torch.testing.assert_close(logprobs(merged), said, atol=1e-5, rtol=0)
    exported, published = load_file(tmp_path / "export" / "model.safetensors"), dict(policy.named_tensors())
    assert all(torch.equal(published[name], tensor) for name, tensor in exported.items())

    ids = torch.arange(20)[None]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = cast(Any, PeftModel.from_pretrained(base, tmp_path / "export" / "adapter"))
    whole = cast(Any, AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, whole(ids).logits, atol=1e-5, rtol=0)


def test_recomputed_layers_have_the_gradients_of_kept_ones(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    kept, model = adapted(folder), load_policy(folder, False, 1.0, CPU)
    adapt_layers(model.core, SHAPE, 0)
    recompute_layers(model.core)
    recomputed = TorchBackend(model, torch.float32, ADAMW, folder)
    for each in (kept, recomputed):
        train(each)
        UntrainedPolicy(each).predict(packs())
        train(each)
    assert all(torch.equal(kept.state()["weights"][n], t) for n, t in recomputed.state()["weights"].items())


def test_adapters_are_there_again_when_what_was_asked_without_them_fails(tmp_path: Path) -> None:
    policy = adapted(small_model(tmp_path / "model"))
    train(policy)
    before = logprobs(policy.predict(packs()))
    with pytest.raises(ZeroDivisionError), without_adapters(policy._model):  # pyright: ignore[reportPrivateUsage]
        raise ZeroDivisionError
    assert torch.equal(logprobs(policy.predict(packs())), before)


def test_a_target_that_is_no_linear_layer_of_the_model_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RunRejected, match=r"names c_attn, lm_head, and the linear layers of \w+ are down_proj, gate_"):
        adapted(small_model(tmp_path / "model"), shape=AdapterShape(4, 8.0, ("q_proj", "c_attn", "lm_head")))
