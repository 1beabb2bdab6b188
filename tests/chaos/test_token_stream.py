"""Tokens without a model."""

import threading

from benchmarks.chaos.token_stream import Attempt, TokenStream

EOS = 258


def stream(seed: int = 1, seconds_per_token: float = 0.0) -> TokenStream:
    return TokenStream(seed, EOS, seconds_per_token, version="3")


def body(*ids: int, n: int = 4, longest: int = 40) -> dict[str, object]:
    return {"input_ids": list(ids), "sampling_params": {"n": n, "max_new_tokens": longest}}


def ids(attempts: list[Attempt]) -> list[list[int]]:
    return [attempt.token_ids for attempt in attempts]


def nothing(attempt: Attempt) -> None:
    pass


def test_the_same_prompt_gets_the_same_answers_and_attempts_differ() -> None:
    first, again = (ids(stream().answer(body(1, 2), nothing)) for _ in range(2))
    assert first == again
    assert len({tuple(attempt) for attempt in first}) == 4
    assert first != ids(stream().answer(body(1, 3), nothing))
    assert first != ids(stream(seed=2).answer(body(1, 2), nothing))


def test_an_answer_ends_with_the_end_token_or_at_its_longest() -> None:
    for attempt in stream().answer(body(5, n=16, longest=12), nothing):
        ended = attempt.token_ids[-1] == EOS
        assert attempt.finish == ("stop" if ended else "length")
        assert ended or len(attempt.token_ids) == 12


def test_a_version_that_comes_while_requests_are_held_names_the_tokens_after_it() -> None:
    tokens, begun = stream(seconds_per_token=0.001), threading.Event()
    answers: list[Attempt] = []

    def tell(attempt: Attempt) -> None:
        if len(attempt.token_ids) == 3 and not begun.is_set():
            tokens.pause("retract")
            begun.set()

    asking = threading.Thread(target=lambda: answers.extend(tokens.answer(body(9), tell)))
    asking.start()
    assert begun.wait(5)
    tokens.version = "4"
    tokens.resume()
    asking.join(5)
    meta = [attempt.as_answer()["meta_info"] for attempt in answers]
    assert all([span["version"] for span in one["weight_versions"]] == ["3", "4"] for one in meta)
    assert all(one["weight_versions"][-1]["end"] == one["completion_tokens"] for one in meta)


def test_an_abort_ends_requests_with_what_they_have() -> None:
    tokens = stream(seconds_per_token=0.001)

    def tell(attempt: Attempt) -> None:
        if len(attempt.token_ids) == 2:
            tokens.abort()

    answers = tokens.answer(body(9), tell)
    assert {attempt.finish for attempt in answers} == {"abort"}
    assert {len(attempt.token_ids) for attempt in answers} == {2}
