"""The remote protocol: what is sent and which answers are scores."""

import json
import math

import pytest

from services.reward.remote.failures import Rejected
from services.reward.remote.protocol import encode, read_answer, request_body
from services.reward.score import Score, ScoringFailed
from tests.services.reward.reward_cases import rollout


def test_an_attempt_is_sent_with_its_prompt_answer_label_and_metadata() -> None:
    one = rollout(5, 1, "two", metadata={"level": 3})
    assert json.loads(request_body([encode("r1", one), encode("r1", one)]))["rollouts"][1] == {
        "id": "r1/5/1",
        "prompt": "1+1=",
        "response": "two",
        "label": "2",
        "metadata": {"level": 3},
        "dataset": "sums",
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("value", [math.nan, b"bytes"])
def test_what_json_cannot_say_is_an_error_of_its_attempt(value: object) -> None:
    with pytest.raises(ScoringFailed, match="cannot be written as JSON"):
        encode("r1", rollout(0, 0, metadata={"value": value}))


def test_scores_may_be_numbers_or_objects_with_details() -> None:
    body = b'{"scores": [1, {"score": 0.5, "why": "short"}]}'
    assert read_answer(body, 2) == [Score(1.0), Score(0.5, {"why": "short"})]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>", "no JSON"),
        (b"[1, 2]", "no list of scores"),
        (b'{"scores": 1}', "no list of scores"),
        (b'{"scores": [1]}', "1 scores for 2 rollouts"),
        (b"\xff", "no JSON"),
    ],
)
def test_a_malformed_answer_is_a_clear_error(body: bytes, says: str) -> None:
    with pytest.raises(Rejected, match=says):
        read_answer(body, 2)


def test_one_wrong_score_fails_its_attempt_alone() -> None:
    good, bad = read_answer(b'{"scores": [1, NaN]}', 2)
    assert good == Score(1.0)
    assert "finite" in str(bad)
