"""Rows with written answers -> the attempts of their groups: token ids, masks, and no log-probabilities."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.written_answer import WrittenAnswer
from shared.messages import GroupReady, Prompt, Rollout, asked

ReadRow = Callable[[Prompt, ModelTokenizer], list[WrittenAnswer]]
"""The answers of one row, an attempt each; GroupRejected for a row without."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes groups of rows, many at once."""

    read: ReadRow
    tokenizer: ModelTokenizer
    worker: str

    def attempts(self, prompts: Sequence[Prompt]) -> list[list[Rollout] | GroupRejected]:
        """The attempts of each row, or why the row has none."""
        rows = [self._read(prompt) for prompt in prompts]
        answers = [answer for row in rows if not isinstance(row, GroupRejected) for answer in row]
        texts = [text for answer in answers for text in answer.texts]
        encoded = iter(self.tokenizer.encode_all(texts) if texts else [])
        return [
            row if isinstance(row, GroupRejected) else self._group(prompt, row, encoded)
            for prompt, row in zip(prompts, rows, strict=True)
        ]

    def _read(self, prompt: Prompt) -> list[WrittenAnswer] | GroupRejected:
        try:
            return self.read(prompt, self.tokenizer)
        except GroupRejected as error:
            return error

    def _group(
        self, prompt: Prompt, answers: list[WrittenAnswer], encoded: Iterator[list[int]]
    ) -> list[Rollout] | GroupRejected:
        group = [
            self._rollout(prompt, attempt, answer, [next(encoded) for _ in answer.texts])
            for attempt, answer in enumerate(answers)
        ]
        problem = next(filter(None, map(self._problem, group)), "")
        return GroupRejected(problem) if problem else group

    def _problem(self, rollout: Rollout) -> str:
        """Why no model could be trained on this attempt; empty if it can be."""
        tokens, tokenizer = np.concatenate([rollout.prompt_ids, rollout.token_ids]), self.tokenizer
        if tokenizer.context is not None and len(tokens) > tokenizer.context:
            whose = f"the {rollout.preference} answer" if rollout.preference else "the answer"
            return (
                f"prompt and {whose} have {len(tokens)} tokens, and the model takes {tokenizer.context} (see"
                " max_position_embeddings in its config.json); shorten the row, or leave it out of the dataset"
            )
        if (largest := int(tokens.max())) >= tokenizer.vocabulary:
            return f"token id {largest} of the row is beyond the model's vocabulary"
        return ""

    def _rollout(self, prompt: Prompt, attempt: int, answer: WrittenAnswer, encoded: list[list[int]]) -> Rollout:
        prompt_ids, token_ids, loss_mask = answer.lay_out(encoded, self.tokenizer.eos_id)
        return Rollout(
            **asked(prompt),
            attempt=attempt,
            prompt_ids=np.asarray(prompt_ids, np.int32),
            token_ids=np.asarray(token_ids, np.int32),
            logprobs=np.zeros(len(token_ids), np.float32),
            loss_mask=loss_mask,
            weight_versions=[(0, len(token_ids))],
            finish_reason="stop",
            text=answer.text(self.tokenizer.eos),
            worker=self.worker,
            seconds=0.0,
            preference=answer.preference,
            reward=0.0,
        )


def ready(attempts: Sequence[Rollout]) -> GroupReady:
    """The group that the attempts of a row make."""
    first = attempts[0]
    return GroupReady(
        group_id=first.group_id,
        kind=first.kind,
        dataset=first.dataset,
        row=first.row,
        lengths=[len(one.prompt_ids) + len(one.token_ids) for one in attempts],
        rewards=[0.0] * len(attempts),
        oldest_version=0,
        newest_version=0,
    )
