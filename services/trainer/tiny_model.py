"""A seed -> a folder with a tiny random Qwen3-architecture checkpoint and a byte-level tokenizer."""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINKING = ("<think>", "</think>")
"""One token each, and part of the text, as in Qwen3."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_MULTIPLE = 64
"""Engines pad embeddings to a multiple of 64 rows; a vocabulary that is one has the same tensors on both sides."""


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Sizes of the model; the defaults make 0.4 million parameters."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    head_dim: int = 32
    max_positions: int = 2048
    init_std: float = 0.06
    """Larger than the usual 0.02, so that a random model's answers differ from each other."""


def write_tiny_model(folder: Path, seed: int, shape: TinyShape | None = None, tie_embeddings: bool = False) -> int:
    """Write config, weights (float32) and tokenizer; returns the number of parameters."""
    sizes = shape or TinyShape()
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_positions,
        initializer_range=sizes.init_std,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the 256 bytes, no merges, the special tokens of a Qwen chat, and the marks of thinking."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (PAD, START, END)])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINKING])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def main(arguments: list[str] | None = None) -> None:
    """`python -m services.trainer.tiny_model OUT --seed 0 --hidden 128 ...`."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.tiny_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tie-embeddings", action="store_true")
    for size in fields(TinyShape):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=type(size.default), default=size.default)
    given = parser.parse_args(arguments)
    shape = TinyShape(**{size.name: getattr(given, size.name) for size in fields(TinyShape)})
    disable_progress_bar()
    count = write_tiny_model(given.folder, given.seed, shape, given.tie_embeddings)
    sys.stdout.write(f"{given.folder}: {count:,} parameters\n")


if __name__ == "__main__":
    main()
