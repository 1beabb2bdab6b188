"""A Hugging Face folder -> one with its weights in block-fp8, as versions of a run with `weights.quantization` are."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from services.trainer.file_modes import share_files
from services.trainer.model_files import CONFIG, model_files
from services.trainer.quantise_weights import Named, quantised
from shared.errors import SluiceError
from shared.fp8_checkpoint import fp8_weights, quantization_config
from shared.safetensors_file import shapes_in
from shared.weight_files import INDEX

DTYPE = torch.bfloat16
"""Of what is not fp8: what engines compute in."""


def quantise_model(source: Path, folder: Path, not_converted: Sequence[str] = ()) -> int:
    """Write `folder`, whole or not at all; returns how many matrices are fp8.

    Raises:
        SluiceError: `source` cannot be quantised, or `folder` is there already.
    """
    _check(source, folder)
    shapes = shapes_in(source)
    converted = fp8_weights(shapes, not_converted)
    aside = folder.with_name(f".{folder.name}_writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    places, nbytes = dict[str, str](), 0
    for file in sorted(source.glob("*.safetensors")):
        tensors = dict(quantised(_read(file), converted))
        save_file(tensors, aside / file.name, {"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        nbytes += sum(tensor.nbytes for tensor in tensors.values())
    config = quantization_config(converted, shapes)
    beside = model_files(source, str(DTYPE).removeprefix("torch."), config)
    index = {"metadata": {"total_size": nbytes}, "weight_map": places}
    for name, content in {**beside, INDEX: json.dumps(index).encode()}.items():
        (aside / name).write_bytes(content)
    share_files(aside)
    aside.rename(folder)
    return len(converted)


def _check(source: Path, folder: Path) -> None:
    if not (source / CONFIG).is_file() or not any(source.glob("*.safetensors")):
        raise SluiceError(f"{source} is no Hugging Face folder with a {CONFIG} and safetensors files")
    if "quantization_config" in json.loads((source / CONFIG).read_text("utf-8")):
        raise SluiceError(f"{source} holds quantised weights; give the float32 or bfloat16 checkpoint")
    if folder.exists():
        raise SluiceError(f"{folder} is there already; remove it, or write another name")


def _read(file: Path) -> Iterator[Named]:
    """On the GPU, if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, tensor in load_file(file, device).items():
        yield name, tensor.to(DTYPE) if tensor.is_floating_point() else tensor


def main() -> None:
    """`python -m services.trainer.quantise_model SOURCE FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.quantise_model", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="append", default=[], help="a module that stays in bfloat16; may be repeated")
    given = parser.parse_args()
    try:
        count = quantise_model(given.source, given.folder, given.keep)
    except (SluiceError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(f"{given.folder}: {count} matrices in fp8\n")


if __name__ == "__main__":
    main()
