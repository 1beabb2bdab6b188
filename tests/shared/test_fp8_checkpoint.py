"""Which matrices of a model are fp8, and what the config says of the others, is the same as engines make of it."""

import pytest

from shared.errors import RunRejected
from shared.fp8_checkpoint import fp8_weights, quantization_config

ATTENTION = {"q_proj": (256, 128), "k_proj": (128, 128), "v_proj": (128, 128), "o_proj": (128, 256)}
MLP = {"gate_proj": (384, 128), "up_proj": (384, 128), "down_proj": (128, 384)}


def shapes(layers: int = 2, **changed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of a dense model; `changed` by the last name of a module, in all layers."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 128), "model.norm.weight": (128,)}
    for layer in range(layers):
        parts = {f"self_attn.{n}": s for n, s in ATTENTION.items()} | {f"mlp.{n}": s for n, s in MLP.items()}
        parts |= {"input_layernorm": (128,), "self_attn.q_norm": (32,)}
        found |= {f"model.layers.{layer}.{n}.weight": changed.get(n.split(".")[-1], s) for n, s in parts.items()}
    return {**found, "lm_head.weight": (512, 128)}


def experts(intermediate: int = 256) -> dict[str, tuple[int, ...]]:
    place = "model.layers.0.mlp"
    sizes = {"gate_proj": (intermediate, 128), "up_proj": (intermediate, 128), "down_proj": (128, intermediate)}
    found = {f"{place}.experts.{e}.{name}.weight": size for e in range(3) for name, size in sizes.items()}
    return {**found, f"{place}.gate.weight": (128, 128), f"{place}.shared_expert_gate.weight": (1, 128)}


def kept(names: frozenset[str], of: dict[str, tuple[int, ...]]) -> set[str]:
    """The modules with a matrix that stays as it is, in the first layer, without their place there."""
    inside = "model.layers.0."
    left = (name for name, shape in of.items() if len(shape) > 1 and name not in names and name.startswith(inside))
    return {name.removeprefix(inside).removesuffix(".weight") for name in left}


def test_all_matrices_of_layers_are_fp8_and_nothing_else() -> None:
    model = shapes()
    found = fp8_weights(model)
    assert len(found) == 14
    assert kept(found, model) == set()
    assert quantization_config(found, model) == {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.embed_tokens"],
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"k_proj": (64, 128)}, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
        ({"up_proj": (320, 128), "gate_proj": (320, 128)}, {"mlp.gate_proj", "mlp.up_proj"}),
        ({"down_proj": (128, 320)}, {"mlp.down_proj"}),
        ({"o_proj": (130, 256)}, set()),
    ],
    ids=["narrow heads", "a ragged pair", "ragged columns", "ragged rows of one that is alone"],
)
def test_what_an_engine_cannot_hold_in_blocks_stays_as_it_is_with_all_that_is_held_with_it(
    changed: dict[str, tuple[int, ...]], expected: set[str]
) -> None:
    model = shapes(**changed)
    assert kept(fp8_weights(model), model) == expected


def test_experts_are_fp8_all_together_and_what_chooses_them_is_not() -> None:
    model = experts()
    found = fp8_weights(model)
    assert kept(found, model) == {"mlp.gate", "mlp.shared_expert_gate"}
    ragged = {**shapes(1), **experts(192)}
    assert not any("experts" in name for name in fp8_weights(ragged))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("model.layers.0", 7),
        ("layers.0.", 7),
        ("o_proj", 1),
        ("model.layers.0.self_attn.v_proj", 3),
        ("model.layers.1", 0),
    ],
)
def test_modules_that_are_named_stay_as_they_are(given: str, expected: int) -> None:
    model = shapes(12)
    assert len(kept(fp8_weights(model, [given]), model)) == expected


def test_a_model_without_such_matrices_is_refused() -> None:
    with pytest.raises(RunRejected, match=r'could be fp8 .* write weights\.quantization = "none"'):
        fp8_weights({"model.embed_tokens.weight": (512, 128), "model.layers.0.mlp.up_proj.weight": (100, 100)})


def test_a_module_that_the_model_has_not_is_refused_and_all_that_published_configs_list_is_taken() -> None:
    fp8_weights(shapes(), ["lm_head", "model.layers.1.input_layernorm", "model.embed_tokens"])
    with pytest.raises(RunRejected, match="has 'o_pro', and no module of this model has that name"):
        fp8_weights(shapes(), ["q_proj", "o_pro"])
