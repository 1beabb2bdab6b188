"""Prompt texts and chat messages -> token ids, always the same ones; token ids -> the text that a reward sees."""

from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer

from services.rollout.model_limits import ModelLimits, read_limits
from services.rollout.refusals import GroupRejected
from shared.errors import RunRejected
from shared.messages import Turns

PROBE: Turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
"""A conversation that every template renders; what a template writes after it is what follows an answer."""
MARK = "here-the-answer-ends"
"""Stands for the newest answer, so that it is found again however the template writes answers."""


class ModelTokenizer:
    """The tokenizer and chat template of the run's model."""

    def __init__(self, tokenizer: Any, always_chat: bool = False, limits: ModelLimits | None = None) -> None:
        """`always_chat` wraps plain prompts as a user message; `limits` are the model's."""
        limits = limits or ModelLimits()
        self._tokenizer = tokenizer
        self._always_chat = always_chat
        self._special = frozenset(cast(list[int], tokenizer.all_special_ids))
        self.vocabulary = min(len(tokenizer), limits.vocabulary or len(tokenizer))
        """Token ids from here on are none of the model's."""
        self.context = limits.context
        """Tokens of the longest sequence that the model takes; None where nobody says."""
        self.eos_id = int(tokenizer.eos_token_id)
        self.eos = str(tokenizer.eos_token)

    def prompt_text(self, prompt: str | Turns) -> str:
        """The text that the model continues; GroupRejected if the chat template refuses it."""
        if not isinstance(prompt, str):
            return self._render(prompt, generation_prompt=True)
        return self._render([{"role": "user", "content": prompt}], True) if self._always_chat else prompt

    def following_text(self, messages: Turns, after_eos: bool, history: Turns = PROBE) -> str:
        """What the template writes for messages that come after the model's answer, up to its next one.

        Args:
            after_eos: the answer ended with the end-of-sequence token, which is not written again.
            history: the conversation up to that answer, which is its last message.
        """
        marked = [*history[:-1], {**history[-1], "content": MARK}]
        _, found_before, before = self._render(marked, generation_prompt=False).rpartition(MARK)
        _, found_after, after = self._render([*marked, *messages], generation_prompt=True).rpartition(MARK)
        ending, eos, _ = before.partition(self.eos)
        if not (found_before and found_after and after.startswith(ending)):
            raise GroupRejected("the chat template rewrites earlier messages; add the text of the next turn yourself")
        after = after[len(ending) :] if eos else after.removeprefix(before)
        return after.removeprefix(self.eos) if after_eos else after

    def answer_text(self, history: Turns, answer: dict[str, Any]) -> str:
        """What the template writes for an answer of the model, without the end-of-sequence token.

        A template whose answers do not begin as it asks for them (one that asks with an open `<think>`) gives the
        content as it is.
        """
        asked = self._render(history, generation_prompt=True)
        told = self._render([*history, answer], generation_prompt=False)
        content = answer.get("content")
        if told.startswith(asked):
            said, eos, _ = told[len(asked) :].rpartition(self.eos)
            return said if eos else told[len(asked) :].rstrip()
        if isinstance(content, str) and not answer.get("tool_calls"):
            return content
        raise GroupRejected("the chat template does not begin this answer as it asks for it; write it as text")

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
        raise RunRejected(
            f"model.path {folder} is not a folder here; give the folder of a Hugging Face checkpoint; one of the Hub is"
            " downloaded first: `hf download OWNER/NAME --local-dir FOLDER`"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RunRejected(f"model.path {folder} has no tokenizer that loads ({reason}); add its files") from error
    if not tokenizer.encode("a", add_special_tokens=False):  # transformers makes an empty one for a known architecture
        raise RunRejected(f"model.path {folder} has no tokenizer, only a model; add tokenizer.json and its other files")
    if tokenizer.eos_token_id is None:
        raise RunRejected(f"the tokenizer in {folder} has no eos_token, so no answer would end; name one in its files")
    if always_chat and not tokenizer.chat_template:
        raise RunRejected(
            f"data.chat_template is true, but the tokenizer in {folder} has no chat template; write false"
        )
    return ModelTokenizer(tokenizer, always_chat, read_limits(folder / "config.json"))
