"""A Hugging Face folder and prompts -> the model's answers, on this machine, without any service."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


def answers(folder: Path, prompts: Iterator[str], template: bool, max_new_tokens: int) -> Iterator[str]:
    """One greedy answer for each prompt; `template` wraps it as one user message of a chat."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    for prompt in prompts:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) if template else prompt
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        yield tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """`python -m services.trainer.chat FOLDER`: prompts in, answers out, a line each."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.chat", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", help="answer this one and end")
    parser.add_argument("--chat-template", action="store_true", help="wrap each prompt as one user message")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    given = parser.parse_args()
    if not (given.folder / "config.json").exists():
        parser.error(f"{given.folder} is no Hugging Face model folder: it has no config.json")
    if given.prompt is not None and not given.prompt.strip():
        parser.error("--prompt is empty; write what to ask")
    disable_progress_bar()
    set_verbosity_error()
    prompts = iter([given.prompt]) if given.prompt is not None else _typed()
    for answer in answers(given.folder, prompts, given.chat_template, given.max_new_tokens):
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _typed() -> Iterator[str]:
    """Lines of standard input; with a sign that one is awaited if a person types them."""
    while True:
        if sys.stdin.isatty():
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


if __name__ == "__main__":
    main()
