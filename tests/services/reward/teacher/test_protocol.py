"""What an SGLang server is asked about attempts, and what becomes of its answers, good and bad."""

import json
from typing import Any

import numpy as np
import pytest

from services.reward.remote.failures import Rejected, Unavailable
from services.reward.score import ScoringFailed
from services.reward.teacher.protocol import Question, question_of, read_answer, request_body
from shared.messages import Rollout
from tests.services.reward.reward_cases import rollout
from tests.services.reward.teacher.teacher_server import answer_of, expected


def turns(mask: list[tuple[int, int]], prompt: int = 3, **fields: Any) -> Rollout:
    """An attempt of several turns, with random tokens."""
    length = sum(count for _, count in mask)
    ids = np.random.default_rng(length).integers(0, 300, length).astype(np.int32)
    return rollout(
        0, 0, prompt_ids=np.arange(prompt, dtype=np.int32), token_ids=ids, logprobs=np.zeros(length, np.float32),
        loss_mask=mask, weight_versions=[(4, length)], **fields,
    )  # fmt: skip


def asked(one: Rollout) -> Question:
    question = question_of(one)
    assert question is not None
    return question


def answered(*rollouts: Rollout, change: Any = lambda triples: triples) -> list[Any]:
    questions = [asked(one) for one in rollouts]
    answer = answer_of(json.loads(request_body(questions)))
    for item in answer:
        item["meta_info"]["input_token_logprobs"] = change(item["meta_info"]["input_token_logprobs"])
    return read_answer(json.dumps(answer).encode(), questions)


def test_a_request_asks_for_whole_sequences_and_begins_before_the_first_trained_token() -> None:
    first, second = turns([(0, 2), (1, 4), (0, 3), (1, 1)]), turns([(0, 2), (1, 9)])
    body = json.loads(request_body([asked(first), asked(second)]))
    assert body == {
        "input_ids": [[*one.prompt_ids.tolist(), *one.token_ids.tolist()] for one in (first, second)],
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 4,
    }


@pytest.mark.parametrize("mask", [[(1, 5)], [(1, 2), (0, 3), (1, 4)], [(0, 1), (1, 3), (0, 2)]])
def test_every_trained_token_gets_its_own_number_and_the_others_0(mask: list[tuple[int, int]]) -> None:
    one, other = turns(mask), turns([*mask, (1, 2)])
    for found, wanted in zip(answered(one, other), (expected(one), expected(other)), strict=True):
        assert found.dtype == np.float32
        assert found.tolist() == wanted.tolist()


def test_the_first_token_of_a_sequence_is_not_asked_for_and_without_others_nothing_is() -> None:
    one = turns([(1, 3)], prompt=0)
    assert asked(one).start == 0
    assert answered(one)[0].tolist() == [0.0, *expected(one)[1:].tolist()]
    assert question_of(turns([(0, 4)])) is None
    assert question_of(turns([(1, 1)], prompt=0)) is None


def test_the_last_id_of_the_servers_vocabulary_may_be_named_0() -> None:
    ids = np.asarray([9, 319, 5, 319], np.int32)
    one = turns([(1, 4)])
    one = rollout(0, 0, token_ids=ids, logprobs=one.logprobs, loss_mask=[(1, 4)], weight_versions=[(4, 4)])

    def renamed(hidden: int) -> Any:
        return lambda triples: [[value, 0 if token == hidden else token, None] for value, token, _ in triples]

    assert answered(one, change=renamed(319))[0].tolist() == expected(one).tolist()
    (failed,) = answered(one, change=renamed(9))
    assert isinstance(failed, ScoringFailed)


@pytest.mark.parametrize(
    "change",
    [
        lambda triples: [[value, token + 1, None] for value, token, _ in triples],
        lambda triples: triples[:-1],
        lambda triples: [[None, 1, None], *triples],
    ],
    ids=["other ids", "too few", "too many"],
)
def test_numbers_of_other_tokens_are_refused(change: Any) -> None:
    (failed,) = answered(turns([(1, 5)]), change=change)
    assert isinstance(failed, ScoringFailed)
    assert "serve a model of the policy's vocabulary" in str(failed)


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf")])
def test_a_trained_token_without_a_finite_number_is_refused_and_one_that_is_not_trained_may_lack_it(value: Any) -> None:
    one = turns([(1, 2), (0, 1), (1, 1)])

    def without(index: int) -> Any:
        return lambda triples: [
            [value if at == index else was, token, None] for at, (was, token, _) in enumerate(triples)
        ]

    (failed,) = answered(one, change=without(4))
    assert isinstance(failed, ScoringFailed)
    assert f"token {one.token_ids[3]} at position 6 has no finite log-probability" in str(failed)
    assert answered(one, change=without(3))[0].tolist() == expected(one).tolist()


def test_an_answer_of_one_attempt_that_cannot_be_read_leaves_the_others() -> None:
    questions = [asked(turns([(1, 5)])), asked(turns([(1, 3)]))]
    answer = answer_of(json.loads(request_body(questions)))
    for broken in ({}, {"meta_info": {}}, 7, {"meta_info": {"input_token_logprobs": [1, 2]}}):
        failed, fine = read_answer(json.dumps([broken, answer[1]]).encode(), questions)
        assert isinstance(failed, ScoringFailed)
        assert not isinstance(fine, ScoringFailed)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"[1, 2]", b"null"])
def test_what_is_no_answer_of_such_a_server_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected):
        read_answer(body, [asked(turns([(1, 5)]))])


def test_a_request_that_the_server_gave_up_may_be_asked_again() -> None:
    answer = [{"meta_info": {"finish_reason": {"type": "abort", "message": "Aborted"}}}]
    with pytest.raises(Unavailable, match="aborted"):
        read_answer(json.dumps(answer).encode(), [asked(turns([(1, 5)]))])
