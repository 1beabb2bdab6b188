"""Model parameters in their compute precision <-> the float32 copies that the optimizer moves."""

import torch
from torch import nn


class MasterWeights:
    """Float32 weights and gradients by parameter name; for a float32 model they are the parameters themselves."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.named: dict[str, nn.Parameter] = {}
        self._low: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, parameter in model.named_parameters():
            self.named[name] = parameter if dtype == torch.float32 else self._lower(parameter, dtype)

    def zero_grad(self) -> None:
        for master in self.named.values():
            master.grad = None

    @torch.no_grad()
    def round_to_model(self) -> None:
        """Copy the moved float32 weights into the model."""
        for parameter, master in self._low:
            parameter.copy_(master)

    def _lower(self, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        master = nn.Parameter(parameter.detach().clone())
        parameter.data = parameter.data.to(dtype)
        self._low.append((parameter, master))

        def collect(low: torch.Tensor) -> None:
            # gradients of many micro-batches are added up in float32; bfloat16 would lose the small ones
            assert low.grad is not None
            gradient = low.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            low.grad = None

        parameter.register_post_accumulate_grad_hook(collect)
        return master
