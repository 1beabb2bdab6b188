"""Versions in fp8: what is published of a real model, what transformers reads of it, and that replays know its form."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from services.rollout.host_copy import HostCopy
from services.rollout.version_chain import VersionChain
from services.trainer.compare_replay import against_version
from services.trainer.fp8_blocks import from_blocks, to_blocks
from services.trainer.quantise_model import quantise_model
from services.trainer.quantise_weights import Fp8Form, Named, quantised
from services.trainer.stage_weights import Stage
from services.trainer.tiny_model import TinyShape, write_tiny_model
from services.trainer.weight_hashes import checksum, engine_checksums
from shared.errors import RunRejected, SluiceError
from shared.fp8_checkpoint import FP8
from shared.messages import Rendezvous, WeightVersion
from shared.weight_store import WeightStore
from sluice.cli.main import app
from tests.services.trainer.written_versions import Written

SHAPE = TinyShape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=192, head_dim=64)
"""A width of 192 is no whole number of blocks: the MLP stays as it is."""
CONVERTED = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qkvo"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8") / "bf16"
    write_tiny_model(folder, 0, SHAPE)
    return folder


@pytest.fixture(autouse=True)
def _reads_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where transformers makes bfloat16 of it; it asks for accelerate, and uses nothing of it."""
    monkeypatch.setattr("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def parameters(folder: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


def meant(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a published version stands for."""
    scales = {name for name in published if name.endswith("_scale_inv")}
    return {
        name: from_blocks(tensor, published[f"{name}_scale_inv"]) if tensor.dtype == torch.float8_e4m3fn else tensor
        for name, tensor in published.items()
        if name not in scales
    }


def logprobs(folder: Path, **changed: torch.Tensor) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.load_state_dict(changed, strict=False)
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits.float().log_softmax(-1)


def test_matrices_of_layers_are_followed_by_their_scales_and_all_else_is_as_it_was(source: Path) -> None:
    named = parameters(source)
    published = dict(Fp8Form([])(named.items()))
    assert {name for name, tensor in published.items() if tensor.dtype == torch.float8_e4m3fn} == CONVERTED
    assert published.keys() == named.keys() | {f"{name}_scale_inv" for name in CONVERTED}
    assert all(published[name] is tensor for name, tensor in named.items() if name not in CONVERTED)
    half = sum(tensor.nbytes for name, tensor in named.items() if name in CONVERTED) / 2
    assert sum(published[name].nbytes for name in CONVERTED) == half


def test_a_form_decides_once_and_takes_tensors_as_they_come(source: Path) -> None:
    named, seen, form = parameters(source), list[str](), Fp8Form(["model.layers.1"])

    def coming() -> Iterator[Named]:
        for name, tensor in named.items():
            seen.append(name)
            yield name, tensor

    first = {name: t.dtype for name, t in form(coming())}
    assert sum(dtype == torch.float8_e4m3fn for dtype in first.values()) == 4
    seen.clear()
    again = form(coming())
    next(again)
    assert len(seen) == 1
    assert {name: t.dtype for name, t in again}.items() <= first.items()


def test_a_model_that_fp8_cannot_hold_is_refused() -> None:
    with pytest.raises(RunRejected, match="no matrix of a decoder layer"):
        list(Fp8Form([])([("model.layers.0.mlp.up_proj.weight", torch.ones(8, 8))]))


def test_a_staged_version_has_the_types_of_the_checkpoint_and_hashes_of_what_it_stands_for(source: Path) -> None:
    named = parameters(source)
    staged = Stage(2**18).stage(0, 0, Fp8Form([])(named.items()))
    types = {spec.name: spec.dtype for bucket in staged.buckets.layout for spec in bucket}
    assert {name for name, dtype in types.items() if dtype == FP8} == CONVERTED
    assert {types[f"{name}_scale_inv"] for name in CONVERTED} == {"float32"}
    assert {dtype for name, dtype in types.items() if "self_attn.q_proj" not in name} == {FP8, "float32", "bfloat16"}
    assert engine_checksums(staged.buckets.tensors, "cpu") == engine_checksums(meant(staged.buckets.tensors), "cpu")
    assert engine_checksums(staged.buckets.tensors, "cuda") == engine_checksums(meant(staged.buckets.tensors), "cuda")


def test_transformers_reads_a_version_in_files_and_answers_nearly_as_before(source: Path, tmp_path: Path) -> None:
    named = parameters(source)
    published = dict(Fp8Form([])(named.items()))
    written = Written(str(tmp_path / "store"), tmp_path / "model", full_every=None, tensors=published)
    (tmp_path / "model" / "config.json").write_text((source / "config.json").read_text())
    folder = tmp_path / "store" / written.write_again(0).folder
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["weight_block_size"]) == ("fp8", [128, 128])
    assert "model.layers.1.mlp.down_proj" in config["modules_to_not_convert"]
    read = parameters(folder)
    assert read.keys() == named.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in meant(published).items())
    difference = (logprobs(folder) - logprobs(source)).abs()
    assert 0 < difference.mean() < 0.1
    assert torch.equal(logprobs(folder), logprobs(source, **meant(published)))


def test_a_host_follows_versions_in_fp8_by_deltas(source: Path, tmp_path: Path) -> None:
    named, form, copy = parameters(source), Fp8Form([]), HostCopy(tmp_path / "host")
    written = Written(str(tmp_path / "store"), tmp_path / "model", tensors=dict(form(named.items())))
    for version in range(3):
        for name in CONVERTED:
            named[name][version] *= -1.5
        written.tensors = dict(form(named.items()))
        files = written.write_again(version)
        assert files.kind == ("delta" if version else "full")
        folder, held = copy.take(VersionChain(WeightStore(files.store), files, lambda: None), lambda: None, print)
        held.release()
        found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert found.keys() == written.tensors.keys()
        assert all(same(found[name], tensor) for name, tensor in written.tensors.items())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["fmt"] == "e4m3"


def test_a_replay_is_compared_in_the_form_that_was_announced(source: Path) -> None:
    named = parameters(source)
    published = dict(Fp8Form(["k_proj"])(named.items()))
    layout = Stage(2**20).stage(3, 3, published.items()).buckets.layout
    meeting = Rendezvous("", 0, "a", "gloo", 0, 0)
    announced = WeightVersion(3, 3, layout, checksum(published, "cpu"), {}, meeting, "cpu")
    assert against_version(announced, named).equal
    name = min(CONVERTED)
    assert not against_version(announced, {**named, name: -named[name]}).equal


def test_a_folder_is_quantised_as_versions_are(source: Path, tmp_path: Path) -> None:
    command = ["quantize", str(source), str(tmp_path / "fp8"), "--keep", "model.layers.1"]
    assert CliRunner().invoke(app, command).exit_code == 0
    published = dict(Fp8Form(["model.layers.1"])(parameters(source).items()))
    found = load_file(tmp_path / "fp8" / "model.safetensors")
    assert found.keys() == published.keys()
    assert all(same(found[name], tensor) for name, tensor in published.items())
    read = parameters(tmp_path / "fp8")
    assert all(torch.equal(read[name], tensor) for name, tensor in meant(published).items())
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert (tmp_path / "fp8" / "tokenizer.json").exists()
    with pytest.raises(SluiceError, match="is there already"):
        quantise_model(source, tmp_path / "fp8")
    with pytest.raises(SluiceError, match="holds quantised weights"):
        quantise_model(tmp_path / "fp8", tmp_path / "again")
    with pytest.raises(SluiceError, match="is no Hugging Face folder"):
        quantise_model(tmp_path, tmp_path / "again")


@pytest.mark.parametrize("together", [1, 60_000, 10**9])
def test_matrices_that_are_quantised_together_are_what_each_is_alone(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr("services.trainer.quantise_weights.TOGETHER", together)
    shapes = [(128, 256), (256, 128), (130, 256), (384, 256), (128, 128), (5, 128), (256, 256)]
    named = [(f"layers.{index}.weight", torch.randn(shape).bfloat16()) for index, shape in enumerate(shapes)]
    found = dict(quantised(named, {name for name, _ in named}))
    assert len(found) == 2 * len(shapes)
    for name, tensor in named:
        numbers, scales = to_blocks(tensor)
        assert same(found[name], numbers)
        assert torch.equal(found[f"{name}_scale_inv"], scales)
