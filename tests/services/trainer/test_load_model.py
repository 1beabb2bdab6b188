"""Folders that hold no trainable causal LM are refused with one sentence that names the folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.trainer.load_model import load_policy
from shared.errors import RunRejected
from tests.services.trainer.recorded_groups import small_model


def refusal(folder: Path) -> str:
    with pytest.raises(RunRejected) as caught:
        load_policy(folder, False, 1.0, torch.device("cpu"))
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def change_config(folder: Path, **values: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


def test_a_model_that_is_no_causal_lm(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    change_config(folder, model_type="vit", architectures=["ViTModel"])
    assert "not a causal language model" in refusal(folder)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    change_config(folder, model_type="qwen99", architectures=["Qwen99ForCausalLM"])
    assert "not a causal language model" in refusal(folder)


def test_a_config_without_weights(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "cannot be read" in refusal(folder)


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be read" in refusal(folder)


def test_a_missing_tensor_is_never_made_up(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors (model.layers.0.self_attn.q_proj.weight)" in refusal(folder)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    change_config(folder, intermediate_size=64)
    assert "wrong shape" in refusal(folder)


def test_quantised_weights(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    change_config(folder, quantization_config={"quant_method": "fp8"})
    assert "quantised" in refusal(folder)
