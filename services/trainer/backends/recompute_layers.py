"""Decoder layers -> the same layers, whose activations are not kept but computed again in the backward pass."""

from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from services.trainer.backends.shard_model import decoder_layers
from services.trainer.batched_attention import batched_operator
from services.trainer.varlen_attention import varlen_operator

aten = torch.ops.aten
KEPT = [
    batched_operator(),
    varlen_operator(),
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What attention gives is kept: it costs the most to compute again, and is about as large as the layer's input."""


def recompute_layers(core: PreTrainedModel) -> None:
    """In place; names of parameters stay. To be called before layers are compiled or sharded.

    Chen et al. 2016, "Training deep nets with sublinear memory cost", with attention kept as in Korthikanti et al.
    2022, "Reducing activation recomputation in large transformer models".
    """
    for layer in decoder_layers(core):
        layer.__class__ = _recomputed(type(layer))


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """One class for all layers of a kind, so that a compiled layer serves as the compiled form of all of them."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        again = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
        return checkpoint(kind.forward, self, *args, **again, **kwargs)

    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    # the name is what tells a decoder layer from other modules
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
