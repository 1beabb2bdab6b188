"""What is published in fp8 is what the installed SGLang makes by its own reference, hashes, and leaves alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.rollout.launch_engine import CPU_SHIM, ROOT
from services.trainer.fp8_blocks import to_blocks
from services.trainer.quantise_weights import quantised
from services.trainer.weight_hashes import engine_checksums
from shared.fp8_checkpoint import fp8_weights, quantization_config

SHAPES = [(128, 128), (256, 384), (64, 128), (130, 257), (1, 1), (300, 128)]
LAYER = "model.layers.1"
ROWS = {"self_attn.q_proj": 256, "self_attn.k_proj": 128, "self_attn.v_proj": 128, "self_attn.o_proj": 200}
FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "self_attn.o_proj": ("o_proj",)}


def matrix(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Blocks of very different sizes, and one of zeros where there is room for it."""
    generator = torch.Generator().manual_seed(shape[0])
    rows = torch.linspace(-12, 5, shape[0]).exp()[:, None]
    made = (torch.randn(shape, generator=generator) * rows).to(dtype)
    made[:128, 128:256] = 0
    return made


MATRICES = {f"{n}x{k}-{dtype}": matrix((n, k), dtype) for n, k in SHAPES for dtype in (torch.bfloat16, torch.float32)}
MODEL = {f"{LAYER}.{name}.weight": matrix((rows, 256), torch.bfloat16) for name, rows in ROWS.items()}
SHAPES_OF_MODEL: dict[str, tuple[int, ...]] = {
    **{name: tuple(tensor.shape) for name, tensor in MODEL.items()},
    **{name.replace(LAYER, "model.layers.11"): tuple(tensor.shape) for name, tensor in MODEL.items()},
    "model.layers.1.mlp.gate_proj.weight": (100, 128),
    "model.layers.1.mlp.up_proj.weight": (100, 128),
    "model.layers.1.mlp.gate.weight": (128, 128),
    "model.layers.0.self_attn.o_proj.weight": (128, 128),
}
LEFT = ["lm_head", "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.gate", "model.layers.1.mlp.gate_up_proj"]


@dataclass
class Answers:
    made: dict[str, torch.Tensor]
    said: dict[str, Any]


@pytest.fixture(scope="module")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """SGLang's answers to all questions of this file."""
    folder = tmp_path_factory.mktemp("sglang")
    published = dict(quantised(MODEL.items(), MODEL))
    pairs = {
        f"{LAYER}.{held}.{kind}": torch.cat([published[f"{LAYER}.self_attn.{part}.{kind}"] for part in parts])
        for held, parts in FUSED.items()
        for kind in ("weight", "weight_scale_inv")
    }
    save_file({**{f"{name}.blocks": tensor for name, tensor in MATRICES.items()}, **pairs}, folder / "in.safetensors")
    converted = fp8_weights(SHAPES_OF_MODEL, ["layers.0"])
    modules = [*LEFT, *(f"{place}.{held}" for place in (LAYER, "model.layers.11") for held in FUSED)]
    config = quantization_config(converted, SHAPES_OF_MODEL)
    (folder / "question.json").write_text(json.dumps({"quantization_config": config, "modules": modules}))
    names = ("in.safetensors", "question.json", "out.safetensors", "out.json")
    command = [sys.executable, "-m", "tests.services.trainer.sglang_on_cpu", *(str(folder / name) for name in names)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CPU_SHIM), str(ROOT)]),
        "SGLANG_USE_CPU_ENGINE": "1",
    }
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Answers(load_file(folder / "out.safetensors"), json.loads((folder / "out.json").read_text()))


@pytest.mark.parametrize("name", MATRICES)
def test_blocks_are_those_of_the_reference_bit_for_bit(sglang: Answers, name: str) -> None:
    numbers, scales = to_blocks(MATRICES[name])
    assert torch.equal(numbers.view(torch.uint8), sglang.made[f"{name}.numbers"].view(torch.uint8))
    assert torch.equal(scales, sglang.made[f"{name}.scales"])


def test_the_hashes_of_fused_matrices_are_those_of_the_weight_checker(sglang: Answers) -> None:
    published = dict(quantised(MODEL.items(), MODEL))
    assert engine_checksums(published, "cpu") == sglang.said["hashes"]


def test_the_config_is_read_as_it_is_meant(sglang: Answers) -> None:
    assert sglang.said["skipped"] == LEFT
    assert (sglang.said["block"], sglang.said["serialized"]) == ([128, 128], True)
