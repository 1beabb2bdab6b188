"""Rows whose answers can be told right from wrong only by reading the prompt, and what a model says of them."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from services.rollout.model_tokenizer import load_tokenizer
from services.rollout.written_rollout import ReadRow, RowReader
from shared.messages import Prompt, Rollout, Turns, expand

Row = dict[str, Any]
ALPHABET = "bcdfghjklmnpqrstvwxz"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def told(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def preference_rows(count: int, seed: int) -> list[Row]:
    """Of an upper and a lower case answer the prompt's first word says which is the better one.

    Whoever does not read the prompt is right in half of the pairs. Every third row is text, every third a conversation
    whose prompt is the beginning of both answers, every third one whose first turn is muted.
    """
    chance = random.Random(seed)
    return [_preference_row(number, chance) for number in range(count)]


def _preference_row(number: int, chance: random.Random) -> Row:
    word, loud = "".join(chance.choices(ALPHABET, k=4)), chance.random() < 0.5
    asked, better, worse = ("loud " if loud else "soft ") + word, word.upper(), word.lower()
    if not loud:
        better, worse = worse, better
    if number % 3 == 0:
        return {"prompt": asked + "=", "chosen": better, "rejected": worse}
    if number % 3 == 1:
        return {"chosen": [user(asked), told(better)], "rejected": [user(asked), told(worse)]}
    first = [told("how?", step_loss_mask=0), user("as told")]
    return {"prompt": asked, "chosen": [*first, told(better)], "rejected": [*first, told(worse)]}


def conversations(count: int, seed: int) -> list[Row]:
    """Three turns of the assistant; the second one is muted, and its letters are nowhere else."""
    chance = random.Random(seed)
    return [{"prompt": _conversation("".join(chance.choices(ALPHABET, k=3)))} for _ in range(count)]


def _conversation(word: str) -> Turns:
    return [
        user(word),
        told("first " + word),
        user("and?"),
        told("YYYYYY", step_loss_mask=0),
        user("and?"),
        told("last " + word),
    ]


def write_rows(file: Path, rows: Iterable[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def as_prompts(rows: Sequence[Row], kind: Any) -> list[Prompt]:
    """Rows as the gateway stores and releases them."""
    return [
        Prompt(
            number, kind, "held-out", number, row["prompt"], 2, chosen=row.get("chosen"), rejected=row.get("rejected")
        )
        for number, row in enumerate(rows)
    ]


class Judge:
    """A model folder, asked by Hugging Face alone: one sequence at a time, no packing and no trainer."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder, trust_remote_code=False, always_chat=False)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def attempts(self, prompts: Sequence[Prompt], read: ReadRow) -> list[list[Rollout]]:
        made = RowReader(read, self._tokenizer, "judge").attempts(prompts)
        assert all(isinstance(one, list) for one in made)
        return [one for one in made if isinstance(one, list)]

    @torch.no_grad()
    def logprobs(self, rollout: Rollout) -> torch.Tensor:
        """Of every token after the prompt."""
        ids = torch.tensor([*rollout.prompt_ids.tolist(), *rollout.token_ids.tolist()])
        said = self._model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        return said[len(rollout.prompt_ids) - 1 :]

    def trained_sum(self, rollout: Rollout) -> float:
        """Log-probability of the trained tokens together."""
        return float(self.logprobs(rollout)[torch.from_numpy(expand(rollout.loss_mask)).bool()].sum())
