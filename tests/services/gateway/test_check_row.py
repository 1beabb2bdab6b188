"""One row of an upload: what is taken, and the sentence for what is not."""

from typing import Any

import pytest

from services.gateway.check_row import MAX_ROW_BYTES, Row, RowError, RowKeys, check_row, encode_row

KEYS = RowKeys()


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_label_and_metadata_may_be_absent_and_keys_may_have_other_names() -> None:
    assert check_row({"prompt": "1+1="}, KEYS) == Row("1+1=", None, {})
    other = RowKeys("question", "answer", "info")
    row = check_row({"question": "q", "answer": 3, "info": {"level": 1}, "more": 0}, other)
    assert row == Row("q", 3, {"level": 1})


def test_chat_messages_keep_every_field() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert check_row({"prompt": turns}, KEYS).prompt == turns


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([1], "a row is an object"),
        ("text", "a row is an object"),
        ({"label": "2"}, "'prompt' is missing"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": None}, "'prompt' is null"),
        ({"prompt": 7}, "'prompt' is a number"),
        ({"prompt": []}, "'prompt' has no messages"),
        ({"prompt": [{"role": "user"}]}, "message 0 is not"),
        ({"prompt": [{"role": "user", "content": "a"}, "b"]}, "message 1 is not"),
        ({"prompt": "a", "metadata": [1]}, "'metadata' is a list"),
    ],
)
def test_a_row_that_makes_no_prompt_is_refused_with_its_reason(raw: Any, sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        check_row(raw, KEYS)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (2**64, "more than 64 bits"),
        ("\ud800", "surrogate"),
        (float("nan"), "not finite, which is not JSON; write null or text"),
        (b"bytes", "not JSON .*bytes.*; write it as text"),
        (nested(300), "nested deeper"),
        (nested(700), "nested deeper"),
        (nested(5000), "nested deeper"),
        ("x" * MAX_ROW_BYTES, "the limit is"),
    ],
)
def test_a_row_that_the_streams_cannot_carry_is_refused_at_upload(label: Any, sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        encode_row(Row("a", label, {}))
