"""The tiny model: reproducible, loadable by the usual classes, and its tokenizer loses no byte."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.tiny_model import main


@pytest.mark.parametrize("extra", [[], ["--tie-embeddings"]], ids=["separate head", "tied head"])
def test_the_same_seed_writes_the_same_model(tmp_path: Path, extra: list[str]) -> None:
    for name, seed in (("one", "5"), ("two", "5"), ("three", "6")):
        main([str(tmp_path / name), "--seed", seed, "--hidden", "64", "--layers", "1", *extra])
    one, two, three = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two", "three")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], three["model.embed_tokens.weight"])


def test_every_text_survives_the_tokenizer_and_specials_are_one_token(tmp_path: Path) -> None:
    main([str(tmp_path), "--hidden", "32", "--layers", "1"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "12 + 3 =  \n\théllo 你好 🙂<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.removesuffix("<|im_end|>").encode()) + 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|endoftext|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
