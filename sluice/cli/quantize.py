"""`sluice quantize`: a model folder for engines that serve fp8, made on this machine."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def quantize(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder in float32 or bfloat16.")],
    folder: Annotated[Path, typer.Argument(help="What to write; must not be there yet.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A module that stays in bfloat16, as in weights.modules_to_not_convert; may be repeated."),
    ] = None,
) -> None:
    """Write a model in fp8 blocks of 128 x 128 numbers. Needs the trainer's packages."""
    options = [part for module in keep or [] for part in ("--keep", module)]
    command = [sys.executable, "-m", "services.trainer.quantise_model", str(source), str(folder), *options]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
