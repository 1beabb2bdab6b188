"""The adapters of a model -> names, tensors and configuration as the peft library reads them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from services.trainer.backends.adapt_layers import A, AdapterShape, B, adapted_layers

ADAPTER = "adapter"
"""Of a folder with the whole model: its folder for the adapters alone."""
ADAPTER_TENSORS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def named_adapters(core: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapters alone, under the names of the peft library.

    Args:
        weights: of `core`, whole, by name.
    """
    layers = adapted_layers(core)
    return {f"{PREFIX}{name}.{part}.weight": weights[f"{name}.{part}"] for name in layers for part in (A, B)}


def adapter_config(shape: AdapterShape, base: Path) -> bytes:
    """The file beside them; `base` is the folder of the model that they belong to."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": list(shape.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(config, indent=2).encode()


def write_adapters(core: nn.Module, weights: dict[str, torch.Tensor], base: Path, folder: Path) -> None:
    """A folder for `PeftModel.from_pretrained`; none if the whole model learns."""
    layers = adapted_layers(core)
    if not layers:
        return
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in named_adapters(core, weights).items()}
    save_file(tensors, folder / ADAPTER_TENSORS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_bytes(adapter_config(next(iter(layers.values())).adapter, base))
