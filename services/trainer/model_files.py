"""The folder of the initial model -> what stands beside the weights in every folder made of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.content_hash import running_hash

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
OTHER_FILES = ("generation_config.json", "*.py")
CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin")
CHUNK = 2**24


def tokenizer_files(source: Path) -> Iterator[Path]:
    """Those of a tokenizer."""
    for pattern in TOKENIZER_FILES:
        yield from sorted(file for file in source.glob(pattern) if file.is_file())


def model_files(source: Path, dtype: str, quantization: dict[str, Any] | None = None) -> dict[str, bytes]:
    """What an engine needs beside weights of this type, by name.

    Args:
        quantization: what the config is to say about those of them that are quantised.
    """
    config = json.loads((source / CONFIG).read_text("utf-8"))
    config["dtype"] = dtype
    if "torch_dtype" in config:  # as older releases of transformers call it
        config["torch_dtype"] = dtype
    if quantization is not None:
        config["quantization_config"] = quantization
    others = (file for pattern in OTHER_FILES for file in sorted(source.glob(pattern)))
    copied = {file.name: file.read_bytes() for file in (*tokenizer_files(source), *others)}
    return {**copied, CONFIG: json.dumps(config, indent=2).encode()}


def weights_hash(folder: Path) -> str:
    """Of a model's configuration and weights; reads all of them."""
    running = running_hash()
    for pattern in (CONFIG, *WEIGHTS):
        for path in sorted(folder.glob(pattern)):
            running.update(path.name.encode())
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    running.update(chunk)
    return running.hexdigest()
