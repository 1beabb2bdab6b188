"""Model parameters in their compute precision <-> the float32 copies that the optimizer moves."""

from typing import Any

import torch
from torch import nn

aten: Any = torch.ops.aten


class MasterWeights:
    """Float32 weights and gradients by the name of the parameter, of those that learn.

    Those of a float32 model on its device are their own.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, offload: bool = False) -> None:
        """`offload` keeps the copies, and so the optimizer, in the host's memory."""
        self.named: dict[str, nn.Parameter] = {}
        self._low: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._offload = offload
        for name, parameter in model.named_parameters():
            own = dtype == torch.float32 and not offload
            if parameter.requires_grad:
                self.named[name] = parameter if own else self._copy(parameter, dtype)
            else:
                parameter.data = parameter.data.to(dtype)

    def zero_grad(self) -> None:
        for master in self.named.values():
            master.grad = None

    @torch.no_grad()
    def round_to_model(self) -> None:
        """Copy the moved float32 weights into the model."""
        if self._low and not self._offload:
            low, masters = zip(*self._low, strict=True)
            aten._foreach_copy_(list(low), list(masters))
            return
        for parameter, master in self._low:
            # what lies in the host's memory is rounded on the device: the host is slower, and waits for every copy
            parameter.copy_(master.to(parameter.device, non_blocking=True))

    def _copy(self, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        value = parameter.detach().cpu() if self._offload else parameter.detach().clone()
        pinned = value.pin_memory() if self._offload and torch.cuda.is_available() else value
        master = nn.Parameter(pinned)
        parameter.data = parameter.data.to(dtype)
        self._low.append((parameter, master))

        def collect(low: torch.Tensor) -> None:
            # gradients of many micro-batches are added up in float32; bfloat16 would lose the small ones
            assert low.grad is not None
            gradient = low.grad.to(master.device)
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            low.grad = None

        parameter.register_post_accumulate_grad_hook(collect)
        return master
