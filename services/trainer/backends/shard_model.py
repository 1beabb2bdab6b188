"""A model -> the same model, its layers' parameters sharded over the ranks (FSDP2) and gathered as they are needed."""

from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def shard_model(model: nn.Module, core: PreTrainedModel, ranks: int, dtype: torch.dtype, offload: bool) -> None:
    """Shard in place; parameters stay float32, are gathered in `dtype`, and their gradients are summed in float32.

    Zhao et al. 2023, "PyTorch FSDP", in its second form: one group of parameters for each decoder layer, and one for
    the rest (embeddings, norms, head), which stays gathered from forward to backward.
    """
    mesh = init_device_mesh(core.device.type, (ranks,))
    low = None if dtype == torch.float32 else dtype
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    placing = CPUOffloadPolicy() if offload else OffloadPolicy()
    for layer in decoder_layers(core):
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=placing)
    fully_shard(model, mesh=mesh, mp_policy=precision, offload_policy=placing)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # the weights of tokens already add up to 1 over all ranks: gradients are summed, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def let_go(model: nn.Module) -> None:
    """Free what a pass without a backward pass left gathered, so that parameters are shards again.

    The outermost group stays gathered from forward to backward; without this its names would stand for whole copies,
    which hold memory and miss what is written to the shards.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def decoder_layers(core: PreTrainedModel) -> list[nn.Module]:
    """The blocks that repeat, by the class names that every Hugging Face model gives for splitting it."""
    names = set(cast(list[str] | None, core._no_split_modules) or [])  # pyright: ignore[reportPrivateUsage]
    return [module for module in core.modules() if type(module).__name__ in names]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the shards of all ranks; every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
