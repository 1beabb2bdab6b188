"""Layers that compute their activations again: the same bits, less memory, attention only once, names that stay."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from services.trainer.backends.recompute_layers import KEPT, recompute_layers
from services.trainer.backends.shard_model import decoder_layers
from services.trainer.policy_model import PolicyModel
from tests.services.trainer.random_packs import grouped_heads, pack_of, passed, policy, with_a_window

LENGTHS = [120, 64, 33, 9, 2]


class Attended(TorchDispatchMode):
    """Counts calls of the operators of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function in KEPT
        return function(*args, **(kwargs or {}))


def recomputed(make: object) -> PolicyModel:
    assert callable(make)
    model = policy(make())
    recompute_layers(model.core)
    return model


def kept_bytes(model: PolicyModel) -> int:
    """What the forward pass keeps for the backward pass, without the parameters."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        _alive = model(pack_of(LENGTHS))
    return sum(kept.values())


@pytest.mark.parametrize("make", [grouped_heads, with_a_window])
def test_logprobs_entropies_and_gradients_are_the_same_bits(make: object) -> None:
    assert callable(make)
    packed = pack_of(LENGTHS)
    plain, again = passed(policy(make()), packed), passed(recomputed(make), packed)
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, again[name]), name


def test_parameters_and_layers_keep_their_names() -> None:
    plain, again = policy(grouped_heads()), recomputed(grouped_heads)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in again.named_parameters()]
    assert len(decoder_layers(again.core)) == 3
    assert isinstance(decoder_layers(again.core)[0], type(decoder_layers(plain.core)[0]))
    assert len({type(layer) for layer in decoder_layers(again.core)}) == 1


def test_attention_is_computed_once() -> None:
    packed, counts = pack_of(LENGTHS), []
    for model in (policy(grouped_heads()), recomputed(grouped_heads)):
        with Attended() as attended:
            passed(model, packed)
        counts.append(attended.calls)
    assert counts[0] == counts[1] > 0


def test_the_backward_pass_needs_less_memory() -> None:
    """Beside the input and what attention gave, nothing of a layer is kept."""
    assert kept_bytes(recomputed(grouped_heads)) < 0.5 * kept_bytes(policy(grouped_heads()))


def test_matrices_are_multiplied_again() -> None:
    model, calls = recomputed(grouped_heads), []
    layers = decoder_layers(model.core)
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    passed(model, pack_of(LENGTHS))
    assert len(calls) == 2 * len(layers)
