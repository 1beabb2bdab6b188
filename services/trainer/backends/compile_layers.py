"""A model -> the same model, its decoder layers and scores compiled: one graph serves packs of any number of tokens."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from services.trainer.backends.shard_model import decoder_layers
from services.trainer.policy_model import PolicyModel

GRAPHS = 32
"""Of one kind of layer: with and without gradients, with and without a window, packs of one sequence and of many."""

OPTIONS: dict[str, Any] = {"shape_padding": False}
"""Whether to pad odd sizes, such as a vocabulary that is no multiple of 8, depends on how they compare with the number
of tokens: some versions of torch make a graph for each answer."""


def compile_model(model: nn.Module, core: PreTrainedModel, recompute: bool) -> None:
    """In place; the first pass of each kind takes the time of a compilation.

    Numbers of tokens are left open in the graphs, so a pack of another length needs neither a new graph nor padding.
    `recompute` says whether logits are to be made again in the backward pass too.
    """
    from torch import _dynamo as dynamo  # it takes a second to import, which only runs that compile should wait for

    dynamo.config.recompile_limit = max(GRAPHS, dynamo.config.recompile_limit)
    for layer in decoder_layers(core):
        layer.compile(dynamic=True, options=OPTIONS)
    if isinstance(model, PolicyModel):
        model.score = torch.compile(model.score, dynamic=True, options=OPTIONS)
        model.are_logits_kept = not recompute
