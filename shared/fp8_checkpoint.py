"""Names and shapes of a model's tensors -> which of them a block-fp8 checkpoint holds as fp8, and what its config says.

The format is that of the checkpoints that SGLang, vLLM and transformers read as quant_method "fp8": of a matrix
X.weight, [n, k], there is X.weight as float8_e4m3fn and X.weight_scale_inv as float32, [ceil(n / 128), ceil(k / 128)].
Each block of 128 x 128 numbers stands for what it holds times its scale (DeepSeek-V3, arXiv:2412.19437, section 3.3).
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from shared.errors import RunRejected

BLOCK = 128
FP8 = "float8_e4m3fn"
WEIGHT, SCALE = ".weight", ".weight_scale_inv"
LAYER = re.compile(r"^(model\.|language_model\.)*layers\.\d+\.")
"""Of the decoder; embeddings, the head and what sees or hears keep their type."""
ROUTER = re.compile(r"(^|[._])(gate|router)$")
"""What chooses experts: its small errors would send tokens elsewhere."""
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""What engines hold as one matrix, which is fp8 or is not, under which name."""
HEAD = "lm_head"

Shapes = Mapping[str, Sequence[int]]


def fp8_weights(shapes: Shapes, not_converted: Collection[str] = ()) -> frozenset[str]:
    """The names of the matrices that become fp8.

    These are the matrices of the decoder's layers but routers, and but those that an engine cannot hold in blocks: with
    a number of columns that is no multiple of 128, or of rows where several are held as one.

    Args:
        shapes: of all tensors of a checkpoint, by their names.
        not_converted: modules that stay as they are, with all in them: `model.layers.0` or `self_attn`, for example.

    Raises:
        RunRejected: there are none, or nothing of the model has a name that was given.
    """
    _check_named(shapes, not_converted)
    held: dict[str, list[str]] = {}
    for name in shapes:
        if LAYER.match(name) and name.endswith(WEIGHT):
            held.setdefault(_holder(name), []).append(name)
    fit = (names for names in held.values() if all(_fits(n, shapes[n], len(names), not_converted) for n in names))
    found = frozenset(name for names in fit for name in names)
    if not found:
        raise RunRejected(
            "there is no matrix of a decoder layer in this model that could be fp8 in blocks of 128 x 128; write"
            ' weights.quantization = "none"'
        )
    return found


def quantization_config(converted: Collection[str], shapes: Shapes) -> dict[str, Any]:
    """What config.json says about a checkpoint of which the matrices named `converted` are fp8.

    Args:
        shapes: of its tensors; scales among them do not count.
    """
    kept = (name for name, shape in shapes.items() if len(shape) >= 2 and name not in converted)
    modules = {name.removesuffix(WEIGHT) for name in kept if not name.endswith(SCALE)}
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted({*modules, HEAD}),
    }


def scale_name(weight: str) -> str:
    """Of the scales of the matrix with this name."""
    return weight.removesuffix(WEIGHT) + SCALE


def is_converted(weight: str, not_converted: Iterable[str]) -> bool:
    """Whether a checkpoint whose config lists these modules holds the matrix as fp8, as SGLang reads the list."""
    module = f".{weight.removesuffix(WEIGHT).removeprefix('model.')}."
    return not any(f".{name.strip('.').removeprefix('model.')}." in module for name in not_converted)


def _check_named(shapes: Shapes, not_converted: Collection[str]) -> None:
    for name in not_converted:
        if name != HEAD and all(is_converted(weight, [name]) for weight in shapes):
            raise RunRejected(
                f"weights.modules_to_not_convert has {name!r}, and no module of this model has that name; write whole"
                " parts of names, such as model.layers.0 or o_proj"
            )


def _holder(weight: str) -> str:
    """What an engine holds the matrix in: with others, or alone."""
    before, experts, _ = weight.partition(".experts.")
    if experts:
        return before + experts
    before, _, last = weight.removesuffix(WEIGHT).rpartition(".")
    return f"{before}.{FUSED.get(last, last)}"


def _fits(name: str, shape: Sequence[int], together: int, not_converted: Collection[str]) -> bool:
    """Whether a matrix, one of so many that are held together, can be in blocks and is to be."""
    if len(shape) != 2 or ROUTER.search(name.removesuffix(WEIGHT)) or not is_converted(name, not_converted):
        return False
    return shape[1] % BLOCK == 0 and (together == 1 or shape[0] % BLOCK == 0)
