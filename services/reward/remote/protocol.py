"""Rollouts -> the JSON of one request, and its JSON answer -> scores: the whole remote protocol."""

import json
from typing import Any, cast

from services.reward.remote.failures import Rejected
from services.reward.score import Score, ScoringFailed, read_score
from shared.messages import Attempt


def encode(run: str, attempt: Attempt) -> str:
    """One element of `rollouts` as JSON; ScoringFailed if its label or metadata cannot be written as JSON."""
    fields = {
        "id": f"{run}/{attempt.group_id}/{attempt.attempt}",
        "prompt": attempt.prompt,
        "response": attempt.text,
        "label": attempt.label,
        "metadata": attempt.metadata,
        "dataset": attempt.dataset,
        "finish_reason": attempt.finish_reason,
    }
    try:
        return json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ScoringFailed(
            f"the attempt cannot be written as JSON ({error}); correct the row's label or metadata"
        ) from error


def request_body(items: list[str]) -> bytes:
    return f'{{"rollouts": [{", ".join(items)}]}}'.encode()


def read_answer(body: bytes, count: int) -> list[Score | ScoringFailed]:
    """One score for each attempt, in order; a single wrong score fails its attempt alone.

    Raises:
        Rejected: no JSON, no list of scores, or not one score for each attempt.
    """
    try:
        answer: Any = json.loads(body)
    except ValueError as error:
        raise Rejected(f"its answer is no JSON ({error})") from error
    scores = cast(dict[str, Any], answer).get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise Rejected('its answer has no list of scores; answer {"scores": [...]}')
    if len(scores) != count:
        raise Rejected(f"it answered {len(scores)} scores for {count} rollouts; answer one each, in the same order")
    return [_read_one(score) for score in scores]


def _read_one(given: object) -> Score | ScoringFailed:
    try:
        return read_score(given)
    except ScoringFailed as error:
        return error
