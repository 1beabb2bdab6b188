"""Attempts -> the JSON of one request to an SGLang server, and its JSON answer -> the log-probabilities of tokens."""

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from services.reward.remote.failures import Rejected, Unavailable
from services.reward.score import Logprobs, ScoringFailed
from shared.messages import Rollout, expand

PATH = "/generate"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One attempt, as the teacher sees it."""

    token_ids: NDArray[np.int32]
    """[prompt and response]."""
    trained: NDArray[np.int64]
    """Positions of the trained tokens, ascending, at least one. Never 0: nothing predicts the first token."""
    prompt_tokens: int

    @property
    def start(self) -> int:
        """The first position of which the answer speaks: it has nothing to say of that one itself."""
        return int(self.trained[0]) - 1


def question_of(rollout: Rollout) -> Question | None:
    """None for an attempt without a token that is trained."""
    prompt = len(rollout.prompt_ids)
    mask = np.concatenate([np.zeros(prompt, np.int32), expand(rollout.loss_mask)])
    mask[:1] = 0
    trained = np.flatnonzero(mask)
    if not len(trained):
        return None
    return Question(np.concatenate([rollout.prompt_ids, rollout.token_ids]), trained, prompt)


def request_body(questions: list[Question]) -> bytes:
    """All of them begin at the same position: a router in front of several servers takes one number for a request."""
    (start,) = {question.start for question in questions}
    body = {
        "input_ids": [question.token_ids.tolist() for question in questions],
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": start,
    }
    return json.dumps(body).encode()


def read_answer(body: bytes, questions: list[Question]) -> list[Logprobs | ScoringFailed]:
    """Of each attempt [response tokens] float32, 0 where one is not trained; a wrong answer fails its attempt alone.

    Raises:
        Unavailable: the server gave the request up.
        Rejected: no JSON, or not one answer for each attempt.
    """
    try:
        answer: Any = json.loads(body)
    except ValueError as error:
        raise Rejected(f"its answer is no JSON ({error})") from error
    if not isinstance(answer, list) or len(cast(list[Any], answer)) != len(questions):
        raise Rejected(f"it gave no list of {len(questions)} answers; write the address of an SGLang server")
    return [_read_one(item, question) for item, question in zip(cast(list[Any], answer), questions, strict=True)]


def _read_one(item: Any, question: Question) -> Logprobs | ScoringFailed:
    try:
        meta = item["meta_info"]
        is_aborted = (meta.get("finish_reason") or {}).get("type") == "abort"
        told = [] if is_aborted else [(triple[0], int(triple[1])) for triple in meta["input_token_logprobs"]]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        return ScoringFailed(f"its answer has no log-probabilities of input tokens ({type(error).__name__}: {error})")
    if is_aborted:
        raise Unavailable("it aborted the request")
    asked = question.token_ids[question.start :]
    if not _same(np.asarray([token_id for _, token_id in told], np.int64), asked):
        return ScoringFailed(
            f"it answered about other tokens than the {len(asked)} that were asked about; serve a model of the"
            " policy's vocabulary, whose context takes a whole attempt"
        )
    values = np.asarray([np.nan if value is None else value for value, _ in told], np.float32)
    wanted = values[question.trained - question.start]
    if not np.isfinite(wanted).all():
        at = int(question.trained[int(np.flatnonzero(~np.isfinite(wanted))[0])])
        return ScoringFailed(
            f"token {question.token_ids[at]} at position {at} has no finite log-probability; look at the teacher's"
            " weights and precision"
        )
    found = np.zeros(len(question.token_ids) - question.prompt_tokens, np.float32)
    found[question.trained - question.prompt_tokens] = wanted
    return found


def _same(told: NDArray[np.int64], asked: NDArray[np.int32]) -> bool:
    """Whether the ids are those that were asked; SGLang names the last id of its vocabulary 0."""
    if len(told) != len(asked):
        return False
    other = told != asked
    return not other.any() or (not told[other].any() and bool((asked[other] == asked.max()).all()))
