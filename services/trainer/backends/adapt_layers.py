"""Linear layers of a model -> the same layers, frozen, each with a low-rank adapter beside it that learns.

Hu et al. 2021, "LoRA: Low-rank adaptation of large language models", section 4.1: h = W x + (alpha / rank) B A x.
"""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from services.trainer.backends.shard_model import decoder_layers
from shared.errors import RunRejected
from shared.lora_settings import LoraSettings

A, B = "lora_A", "lora_B"


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What the adapters of a model have in common."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Last parts of the names of the layers that get one."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def shape_of(lora: LoraSettings) -> AdapterShape:
    return AdapterShape(lora.rank, lora.alpha, tuple(lora.target_modules))


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter; its weight keeps its name."""

    lora_A: nn.Parameter  # [rank, in_features]
    lora_B: nn.Parameter  # [out_features, rank]
    adapter: AdapterShape
    is_adapted: bool
    """False while the model is asked as it was before any training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        frozen = super().forward(input)
        if not self.is_adapted:
            return frozen
        low = functional.linear(functional.linear(input, self.lora_A), self.lora_B)
        return frozen + low * self.adapter.scale


def adapt_layers(core: PreTrainedModel, shape: AdapterShape, seed: int) -> None:
    """In place: nothing of `core` learns but its adapters. To be called before layers are compiled or sharded.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) and B is 0, as in the peft library, so that the model says what it said.

    Raises:
        RunRejected: a target is the name of no linear layer.
    """
    found = _linear_layers(core)
    if missing := sorted(set(shape.targets) - found.keys()):
        raise RunRejected(
            f"lora.target_modules names {', '.join(missing)}, and the linear layers of {type(core).__name__} are"
            f" {', '.join(sorted(found))}; write some of these"
        )
    core.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for target in shape.targets:
        for layer in found[target]:
            _adapt(layer, shape, random)


def adapted_layers(core: nn.Module) -> dict[str, AdaptedLinear]:
    """By name; empty if the whole model learns."""
    return {name: layer for name, layer in core.named_modules() if isinstance(layer, AdaptedLinear)}


@contextlib.contextmanager
def without_adapters(core: nn.Module) -> Generator[None]:
    """The model as it was before any training, for the length of a block."""
    layers = adapted_layers(core).values()
    for layer in layers:
        layer.is_adapted = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_adapted = True


def merged(core: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W + scale B A in float32, rounded to the type of W, under the names that the model has without adapters.

    Args:
        weights: of `core`, whole, by name.
    """
    layers = adapted_layers(core)
    if not layers:
        return weights
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith((f".{A}", f".{B}"))}
    for name, layer in layers.items():
        low, high, weight = weights[f"{name}.{A}"], weights[f"{name}.{B}"], weights[f"{name}.weight"]
        moved = torch.addmm(weight.float(), high.float(), low.float(), alpha=layer.adapter.scale)
        kept[f"{name}.weight"] = moved.to(weight.dtype)
    return kept


def _linear_layers(core: PreTrainedModel) -> dict[str, list[nn.Linear]]:
    """Those of the decoder layers by the last part of their names, in the order of the layers."""
    found: dict[str, list[nn.Linear]] = {}
    for block in decoder_layers(core):
        for name, layer in block.named_modules():
            if type(layer) is nn.Linear:
                found.setdefault(name.rpartition(".")[2], []).append(layer)
    return found


def _adapt(layer: nn.Linear, shape: AdapterShape, random: torch.Generator) -> None:
    width, device = layer.in_features, layer.weight.device
    drawn = torch.rand(shape.rank, width, generator=random) * 2 - 1
    layer.__class__ = AdaptedLinear
    adapted = cast(AdaptedLinear, layer)
    adapted.lora_A = nn.Parameter((drawn * width**-0.5).to(device))
    adapted.lora_B = nn.Parameter(torch.zeros(layer.out_features, shape.rank, device=device))
    adapted.adapter, adapted.is_adapted = shape, True
