"""Float32 weights beside a half-precision model: small gradients add up, moves reach the model, in host memory too."""

import pytest
import torch
from torch import nn

from services.trainer.backends.master_weights import MasterWeights

SMALL = 2.0**-10
"""Beside 1 it is lost in bfloat16, which has 8 digits."""


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("offload", [False, True])
def test_gradients_of_many_passes_add_up_in_float32(offload: bool) -> None:
    model = linear()
    masters = MasterWeights(model, torch.bfloat16, offload)
    for size in (1.0, *[SMALL] * 64):
        model(torch.full((1, 3), size, dtype=torch.bfloat16)).sum().backward()
        assert all(p.grad is None for p in model.parameters()), "no gradient stays beside the sum"
    gradient = masters.named["weight"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, torch.full((2, 3), 1 + 64 * SMALL))


@pytest.mark.parametrize("offload", [False, True])
def test_moved_weights_are_rounded_to_the_model(offload: bool) -> None:
    model = linear()
    before = model.weight.detach().clone()
    masters = MasterWeights(model, torch.bfloat16, offload)
    assert torch.equal(masters.named["weight"].detach(), before)
    with torch.no_grad():
        masters.named["weight"].add_(SMALL)
    masters.round_to_model()
    assert torch.equal(model.weight.detach(), (before + SMALL).bfloat16())


def test_a_float32_model_is_its_own_master() -> None:
    model = linear()
    masters = MasterWeights(model, torch.float32)
    assert all(masters.named[name] is p for name, p in model.named_parameters())


def test_a_frozen_parameter_has_neither_a_copy_nor_a_gradient() -> None:
    model = linear()
    model.bias.requires_grad_(False)
    masters = MasterWeights(model, torch.bfloat16)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    assert masters.named.keys() == {"weight"}
    assert (model.bias.dtype, model.bias.grad) == (torch.bfloat16, None)
