"""The record of an attempt: what is stored can be read back at any moment, and is given out again in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout.partial_attempt import PartialAttempt, Segment, read_chunks
from services.rollout.read_answers import Sample
from shared.messages import Codec, TokenChunk, expand


def attempt(segments=(), number=0) -> PartialAttempt:
    return PartialAttempt(number, list(segments), lambda: None)


def sample(token_ids, version=3, finish="") -> Sample:
    return Sample(list(token_ids), [-0.5 * t for t in token_ids], [(version, len(token_ids))], finish)


def wire(chunks: list[TokenChunk]) -> list[TokenChunk]:
    codec: Codec[TokenChunk] = Codec(TokenChunk)
    return [codec.decode(codec.encode(chunk)) for chunk in chunks]


def content(segments: list[Segment]):
    return [(s.sampled, s.token_ids, expand(s.weight_versions).tolist(), s.finish_reason) for s in segments]


def read(chunks, number=0) -> list[Segment]:
    return read_chunks(wire(chunks)).get(number, [])


def two_turns() -> tuple[PartialAttempt, list[TokenChunk]]:
    """A complete reply, an addition, and a reply that is not complete."""
    made = attempt()
    first = made.next_reply()
    made.take(first, sample([1, 2], 3))
    chunks = made.take_chunks()
    made.take(first, sample([3], 4, "stop"))
    made.add([7, 8])
    made.take(made.next_reply(), sample([5], 4))
    return made, chunks + made.take_chunks()


def test_what_is_stored_is_read_back_with_versions_and_ends():
    _, chunks = two_turns()
    assert [(c.at, len(c.token_ids)) for c in chunks] == [(0, 2), (2, 1), (3, 2), (5, 1)]
    assert content(read(chunks)) == [
        (True, [1, 2, 3], [3, 3, 4], "stop"),
        (False, [7, 8], [], ""),
        (True, [5], [4], ""),
    ]
    assert read(chunks)[0].logprobs == [-0.5, -1.0, -1.5]


def test_a_function_that_does_the_same_again_gets_what_was_recorded_and_stores_nothing():
    again = attempt(read(two_turns()[1]))
    first = again.next_reply()
    assert (first.token_ids, first.finish_reason) == ([1, 2, 3], "stop")
    again.add([7, 8])
    unfinished = again.next_reply()
    assert (unfinished.token_ids, unfinished.finish_reason) == ([5], "")
    assert (again.mismatches, again.take_chunks()) == (0, [])
    again.take(unfinished, sample([6], 5, "stop"))
    assert [(c.at, c.token_ids.tolist()) for c in again.take_chunks()] == [(6, [6])]


@pytest.mark.parametrize("other", [[7], [7, 9], [7, 8, 9]])
def test_a_function_that_adds_something_else_goes_on_from_there_and_the_rest_is_dropped(other):
    chunks = two_turns()[1]
    again = attempt(read(chunks))
    again.next_reply()
    again.add(other)
    assert again.mismatches == 1
    chunks += again.take_chunks()
    assert content(read(chunks))[1:] == [(False, other, [], "")]
    assert again.next_reply().token_ids == []


def test_a_function_that_samples_where_it_added_before_samples_anew():
    again = attempt(read(two_turns()[1]))
    again.next_reply()
    assert again.next_reply().token_ids == []
    assert again.mismatches == 1


def test_an_attempt_that_starts_over_has_nothing_left_in_redis_either():
    made, chunks = two_turns()
    made.start_over()
    assert read(chunks + made.take_chunks()) == []
    made.take(made.next_reply(), sample([9]))
    assert content(read(chunks + made.take_chunks())) == [(True, [9], [3], "")]


def test_chunks_after_a_gap_are_passed_over():
    _, chunks = two_turns()
    assert content(read([chunks[0], *chunks[2:]])) == [(True, [1, 2], [3, 3], "")]
    assert read(chunks[1:]) == []


def test_an_end_without_tokens_that_is_stored_twice_ends_once():
    made = attempt()
    reply = made.next_reply()
    made.take(reply, sample([1, 2]))
    chunks = made.take_chunks()
    made.close(reply, "length")
    closing = made.take_chunks()
    assert content(read(chunks + closing + closing)) == [(True, [1, 2], [3, 3], "length")]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 3)),
        st.tuples(st.just("end"), st.sampled_from(["stop", "length"])),
        st.tuples(st.just("add"), st.lists(st.integers(0, 99), min_size=1, max_size=3)),
        st.tuples(st.just("store"), st.booleans()),
        st.tuples(st.just("again")),
        st.tuples(st.just("die"), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_is_stored_twice_or_lost_with_a_worker_the_record_is_a_prefix_of_the_attempt(script):
    """Chunks are appended in batches, some of them twice, and workers die with what they had not stored."""
    stored: list[TokenChunk] = []
    made, reply = attempt(), None
    for step in script:
        if step[0] == "sample":
            reply = reply or made.next_reply()
            made.take(reply, sample(step[1], step[2]))
        elif step[0] == "end" and reply is not None:
            made.close(reply, step[1])
            reply = None
        elif step[0] == "add" and reply is None:
            made.add(step[1])
        elif step[0] == "store":
            chunks = made.take_chunks()
            stored += chunks * (2 if step[1] else 1)
        elif step[0] == "again":
            made.store_again()
        elif step[0] == "die":
            before = content(made._segments)
            made, reply = attempt(read(stored)), None
            assert is_prefix(content(made._segments), before)
            for recorded in list(made._segments):
                if not recorded.sampled:
                    made.add(recorded.token_ids)
                else:
                    given_out = made.next_reply()
                    reply = None if given_out.finish_reason else given_out
            assert made.mismatches == 0
    stored += made.take_chunks()
    assert content(read(stored)) == content([s for s in made._segments if s.token_ids])


def is_prefix(record, whole):
    """By tokens: only the last recorded segment may be shorter than it was, or lack its end."""
    if not record:
        return True
    *complete, last = record
    whole = [segment for segment in whole if segment[1]]
    if complete != whole[: len(complete)] or len(whole) < len(record):
        return False
    real = whole[len(complete)]
    return last[0] == real[0] and all(last[i] == real[i][: len(last[i])] for i in (1, 2)) and last[3] in ("", real[3])
