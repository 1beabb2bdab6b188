"""Prompt texts and chat messages -> token ids, always the same ones; token ids -> the text that a reward sees."""

import json
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer

from services.rollout.refusals import GroupRejected
from shared.errors import RunRejected
from shared.messages import Turns

PROBE: Turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
"""A conversation that every template renders; what a template writes after it is what follows an answer."""


class ModelTokenizer:
    """The tokenizer and chat template of the run's model."""

    def __init__(self, tokenizer: Any, always_chat: bool = False, vocabulary: int | None = None) -> None:
        """`always_chat` wraps plain prompts as a user message; `vocabulary` is the number of the model's token ids."""
        self._tokenizer = tokenizer
        self._always_chat = always_chat
        self._special = frozenset(cast(list[int], tokenizer.all_special_ids))
        self.vocabulary = min(len(tokenizer), vocabulary or len(tokenizer))
        self.eos_id = int(tokenizer.eos_token_id)

    def prompt_text(self, prompt: str | Turns) -> str:
        """The text that the model continues; GroupRejected if the chat template refuses it."""
        if not isinstance(prompt, str):
            return self._render(prompt, generation_prompt=True)
        return self._render([{"role": "user", "content": prompt}], True) if self._always_chat else prompt

    def following_text(self, messages: Turns, after_eos: bool) -> str:
        """What the template writes for messages that come after the model's answer, up to its next one."""
        before = self._render(PROBE, generation_prompt=False)
        after = self._render([*PROBE, *messages], generation_prompt=True)
        eos = str(self._tokenizer.eos_token)
        end_of_answer = before.rfind(eos)
        if not after.startswith(before[: max(end_of_answer, 0)]):
            raise GroupRejected("the chat template rewrites earlier messages; add the text of the next turn yourself")
        start = len(before) if end_of_answer < 0 else end_of_answer + (len(eos) if after_eos else 0)
        return after[start:]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the special tokens that the tokenizer would add around it."""
        return cast(list[int], self._tokenizer.encode(text, add_special_tokens=False))

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts at once, faster."""
        return cast(list[list[int]], self._tokenizer(texts, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without the special tokens at its end."""
        end = len(token_ids)
        while end and token_ids[end - 1] in self._special:
            end -= 1
        return cast(
            str,
            self._tokenizer.decode(token_ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False),
        )

    def _render(self, messages: Turns, generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise GroupRejected(f"the chat template does not take these messages: {error}") from error
        return cast(str, text)


def load_tokenizer(folder: Path, trust_remote_code: bool, always_chat: bool) -> ModelTokenizer:
    """Read the tokenizer from a model's folder, which takes seconds; RunRejected says what is missing there."""
    if not folder.is_dir():
        raise RunRejected(f"model.path {folder} is not a folder here; give the folder of a Hugging Face checkpoint")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RunRejected(f"model.path {folder} has no tokenizer that loads ({reason}); add its files") from error
    if tokenizer.eos_token_id is None:
        raise RunRejected(f"the tokenizer in {folder} has no eos_token, so no answer would end; name one in its files")
    if always_chat and not tokenizer.chat_template:
        raise RunRejected(
            f"data.chat_template is true, but the tokenizer in {folder} has no chat template; write false"
        )
    return ModelTokenizer(tokenizer, always_chat, _vocabulary(folder / "config.json"))


def _vocabulary(config: Path) -> int | None:
    if not config.exists():
        return None
    fields = cast(dict[str, Any], json.loads(config.read_text("utf-8")))
    size = fields.get("vocab_size") or fields.get("text_config", {}).get("vocab_size")
    return int(size) if size else None
