"""Pieces of streamed answers: whole or incremental, with spans of versions or without, aborted, refused."""

import json

import pytest

from services.rollout.read_answers import Continuation, cut_spans, read_piece
from services.rollout.refusals import EngineUnavailable, GroupRejected
from tests.services.rollout.fake_router import piece


@pytest.mark.parametrize("whole", [True, False], ids=["cumulative", "incremental"])
def test_tokens_are_taken_once_whether_an_engine_repeats_them_or_not(whole):
    growing, tokens = Continuation(), [5, 6, 7, 8, 9]
    got = []
    for start, end, finish in ((0, 1, ""), (1, 4, ""), (4, 5, "stop")):
        sent = tokens[:end] if whole else tokens[start:end]
        sample = growing.take(piece(sent, end, finish))
        got.append((sample.token_ids, sample.weight_versions, sample.finish_reason))
        assert sample.logprobs == [-t / 1000 for t in sample.token_ids]
    assert got == [([5], [(3, 1)], ""), ([6, 7, 8], [(3, 3)], ""), ([9], [(3, 1)], "stop")]


def test_spans_of_a_piece_are_those_of_its_new_tokens():
    growing, event = Continuation(), piece([7, 8, 9], 5)
    growing.take(piece([5, 6], 2))
    event["meta_info"]["weight_versions"] = [
        {"version": "3", "start": 0, "end": 3},
        {"version": "4", "start": 3, "end": 5},
    ]
    assert growing.take(event).weight_versions == [(3, 1), (4, 2)]


def test_without_spans_tokens_wait_from_a_change_of_version_until_the_end_tells():
    growing = Continuation()
    assert growing.take(piece([5], 1, spans=False)).token_ids == [5]
    assert growing.take(piece([6], 2, spans=False)).token_ids == [6]
    assert growing.take(piece([7], 3, version=4, spans=False)).token_ids == []
    assert growing.take(piece([8], 4, version=4, spans=False)).token_ids == []
    last = piece([9], 5, "stop", version=4)
    last["meta_info"]["weight_versions"] = [
        {"version": "3", "start": 0, "end": 3},
        {"version": "4", "start": 3, "end": 5},
    ]
    sample = growing.take(last)
    assert (sample.token_ids, sample.weight_versions) == ([7, 8, 9], [(3, 1), (4, 2)])


def test_a_request_that_is_aborted_while_it_queues_repeats_its_last_token_and_loses_none():
    growing = Continuation()
    growing.take(piece([5, 6], 2))
    event = piece([5, 6], 2, "abort")
    event["output_ids"] = [6]
    sample = growing.take(event)
    assert (sample.token_ids, sample.finish_reason) == ([], "abort")


def test_a_request_that_is_aborted_before_its_first_token_needs_no_version():
    sample = Continuation().take(piece([], 0, "abort", version="default"))
    assert (sample.token_ids, sample.finish_reason) == ([], "abort")


def test_pieces_of_several_attempts_are_told_apart():
    growing = [Continuation(), Continuation()]
    assert read_piece(json.dumps(piece([5], 1, index=1)), growing)[0] == 1
    assert read_piece(json.dumps(piece([6], 1, index=0)), growing)[0] == 0
    assert [g.token_ids for g in growing] == [[6], [5]]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": {"code": 400, "message": "longer than the context"}}, GroupRejected),
        ({"error": {"code": 503, "message": "busy"}}, EngineUnavailable),
        ({"error": {"message": "?"}}, EngineUnavailable),
        (piece([5, 6], 1), None),
        (piece([5], 3), EngineUnavailable),
        (piece([5], 1, version="default"), EngineUnavailable),
        ({"output_ids": [1]}, EngineUnavailable),
    ],
)
def test_an_event_that_cannot_be_used_is_an_engine_that_failed_unless_it_refuses(event, error):
    if error is None:
        event["meta_info"]["weight_versions"][0]["end"] = 1
        assert read_piece(json.dumps(event), [Continuation()])[1].token_ids == [5]
        return
    with pytest.raises(error):
        read_piece(json.dumps(event), [Continuation()])


def test_an_abort_with_a_status_is_a_refusal():
    event = piece([], 0, "abort")
    event["meta_info"]["finish_reason"] |= {"status_code": 400, "message": "too long"}
    with pytest.raises(GroupRejected, match="too long"):
        read_piece(json.dumps(event), [Continuation()])


def test_a_part_of_spans_has_the_versions_of_its_tokens():
    assert cut_spans([(3, 2), (4, 2)], 1, 3) == [(3, 1), (4, 1)]
    assert cut_spans([(3, 2), (4, 2)], 2, 2) == []
