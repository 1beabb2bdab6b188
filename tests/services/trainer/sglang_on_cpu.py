"""Matrices, and a checkpoint's config -> what the installed SGLang makes of them, in a process that can import it.

`python -m tests.services.trainer.sglang_on_cpu IN.safetensors CONFIG.json OUT.safetensors OUT.json`, with the CPU
engine's stand-ins on the path. Of each tensor `NAME.blocks` of the input: `NAME.numbers` and `NAME.scales`, as its
reference makes them. Of each pair `NAME.weight`, `NAME.weight_scale_inv`: the hash that its weight checker has for
them. Of the config: which modules it would leave as they are.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from sglang.benchmark import deepseek_utils
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.utils import is_layer_skipped
from sglang.srt.utils.weight_checker import _hash_tensor
from sglang.srt.utils.weight_checker_comparator import Fp8BlockComparable


def main(tensors: Path, question: Path, made: Path, said: Path) -> None:
    deepseek_utils.cdiv = lambda a, b: -(-a // b)  # triton's, of which there is only a stand-in here
    given = load_file(tensors)
    results = {}
    for name in (name for name in given if name.endswith(".blocks")):
        numbers, scales = deepseek_utils.per_block_cast_to_fp8(given[name])
        results |= {name.replace("blocks", "numbers"): numbers, name.replace("blocks", "scales"): scales.contiguous()}
    pairs = [name for name in given if name.endswith(".weight")]
    hashes = {n: _hash_tensor(Fp8BlockComparable(given[n], given[f"{n}_scale_inv"]).dequantize().data) for n in pairs}
    asked = json.loads(question.read_text())
    config = Fp8Config.from_config(asked["quantization_config"])
    skipped = [module for module in asked["modules"] if is_layer_skipped(module, config.ignored_layers)]
    answer = {"hashes": hashes, "skipped": skipped, "block": config.weight_block_size}
    save_file(results, made)
    said.write_text(json.dumps({**answer, "serialized": config.is_checkpoint_fp8_serialized}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
