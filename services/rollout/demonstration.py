"""Rows of an sft run -> demonstrations: the tokens of the prompt, and those of the answer that it should get."""

from collections.abc import Sequence

import numpy as np

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from shared.messages import GroupReady, Prompt, Rollout, Turns, asked


def demonstrate(prompts: Sequence[Prompt], tokenizer: ModelTokenizer, worker: str) -> list[Rollout | GroupRejected]:
    """One demonstration for each row, or why the row has none."""
    texts = [_texts(prompt, tokenizer) for prompt in prompts]
    flat = [text for pair in texts if not isinstance(pair, GroupRejected) for text in pair]
    token_ids = iter(tokenizer.encode_all(flat) if flat else [])
    return [
        pair
        if isinstance(pair, GroupRejected)
        else _rollout(prompt, next(token_ids), [*next(token_ids), tokenizer.eos_id], pair[1], worker)
        for prompt, pair in zip(prompts, texts, strict=True)
    ]


def ready(rollout: Rollout) -> GroupReady:
    """The group of one that a demonstration makes."""
    return GroupReady(
        group_id=rollout.group_id,
        kind=rollout.kind,
        dataset=rollout.dataset,
        row=rollout.row,
        lengths=[len(rollout.prompt_ids) + len(rollout.token_ids)],
        rewards=[0.0],
        oldest_version=0,
        newest_version=0,
    )


def split_row(prompt: Prompt) -> tuple[str | Turns, str]:
    """What is asked and what is to be answered: the label, or else the last message, if it is the assistant's.

    Raises:
        GroupRejected: the row has neither.
    """
    if prompt.label is not None:
        return prompt.prompt, str(prompt.label)
    if not isinstance(prompt.prompt, str) and prompt.prompt and prompt.prompt[-1].get("role") == "assistant":
        return prompt.prompt[:-1], str(prompt.prompt[-1].get("content") or "")
    raise GroupRejected("the row shows no answer; give it a label, or end its messages with one of the assistant")


def _texts(prompt: Prompt, tokenizer: ModelTokenizer) -> tuple[str, str] | GroupRejected:
    try:
        asked, answer = split_row(prompt)
        return tokenizer.prompt_text(asked), answer
    except GroupRejected as error:
        return error


def _rollout(prompt: Prompt, prompt_ids: list[int], token_ids: list[int], text: str, worker: str) -> Rollout:
    return Rollout(
        **asked(prompt),
        attempt=0,
        prompt_ids=np.asarray(prompt_ids, np.int32),
        token_ids=np.asarray(token_ids, np.int32),
        logprobs=np.zeros(len(token_ids), np.float32),
        loss_mask=[(1, len(token_ids))],
        weight_versions=[(0, len(token_ids))],
        finish_reason="stop",
        text=text,
        worker=worker,
        seconds=0.0,
        reward=0.0,
    )
