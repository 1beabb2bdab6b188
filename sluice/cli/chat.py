"""`sluice chat`: a trained model, asked on this machine."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import SluiceError


def chat(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder, such as the export of a run.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this one and end.")] = None,
    template: Annotated[bool, typer.Option("--chat-template", help="Wrap each prompt as one user message.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
) -> None:
    """Ask a model: one prompt a line. Needs the trainer's packages."""
    command = [sys.executable, "-m", "services.trainer.chat", str(folder), "--max-new-tokens", str(max_new_tokens)]
    command += ["--chat-template"] if template else []
    command += ["--prompt", prompt] if prompt is not None else []
    if not (folder / "config.json").exists():
        raise SluiceError(f"{folder} is no Hugging Face model folder: it has no config.json")
    raise typer.Exit(subprocess.run(command, check=False).returncode)
