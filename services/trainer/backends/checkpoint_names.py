"""A model -> its tensors as they are now, under the names that they have in it, or under those of its checkpoint.

Which they are, and how transformers converts them, takes longer to find out than a small model takes to copy; it is
asked for after every step, and found out once.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


class ModelTensors:
    """What a checkpoint has of a model whose modules stay as they are: parameters, tied ones once, and kept buffers."""

    def __init__(self, model: nn.Module, parameters: bool = True) -> None:
        """`parameters`: whether they are asked for, or the buffers alone."""
        self._parameters = dict(model.named_parameters()) if parameters else {}
        kept = model.state_dict()
        self._owners = [(name, *_owner(model, name)) for name, _ in model.named_buffers() if name in kept]

    def now(self) -> dict[str, torch.Tensor]:
        """By the names that they have in the model."""
        buffers = {name: getattr(owner, last) for name, owner, last in self._owners}
        return {**{name: parameter.detach() for name, parameter in self._parameters.items()}, **buffers}


class CheckpointNames:
    """Of one model, whose tensors keep their names and shapes."""

    def __init__(self, core: PreTrainedModel) -> None:
        self._core = core
        self._names: dict[str, str] | None = None
        """In the checkpoint -> in the model; None before the first call, and where tensors are split or joined."""

    def of(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint. Those that are only renamed are the same ones."""
        if self._names is not None:
            return {name: tensors[own] for name, own in self._names.items()}
        converted = revert_weight_conversion(self._core, tensors)
        own_names = {id(tensor): own for own, tensor in tensors.items()}
        names = {name: own_names.get(id(tensor), "") for name, tensor in converted.items()}
        if sorted(names.values()) == sorted(tensors):
            self._names = names
        return converted


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last
