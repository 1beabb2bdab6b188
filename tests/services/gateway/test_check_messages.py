"""Text or messages of a row: what is taken, and which messages are trained."""

from typing import Any

import pytest

from services.gateway.check_messages import check_written, is_trained, shows_an_answer
from services.gateway.refusals import RowError

USER = {"role": "user", "content": "1+1="}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
TOLD = {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    "message",
    [CALL, {**TOLD, "step_loss_mask": 0}, {**TOLD, "step_loss_mask": 1}, {**TOLD, "step_loss_mask": None}],
)
def test_calls_of_tools_and_muted_messages_are_taken(message: dict[str, Any]) -> None:
    assert check_written([USER, message], "prompt", "") == [USER, message]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({**TOLD, "step_loss_mask": 0.5}, "message 1: 'step_loss_mask' is 0.5; write 1 to train the message, 0"),
        ({"role": "assistant", "content": None}, "message 1 is not"),
        ({"role": "", "content": "2"}, "message 1 is not"),
        ({"role": "assistant", "content": 2}, "message 1 is not"),
    ],
)
def test_a_message_that_says_nothing_is_refused_with_its_number(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        check_written([USER, message], "prompt", "")


def test_messages_of_the_assistant_are_trained_unless_muted() -> None:
    assert [is_trained(m) for m in (USER, TOLD, {**TOLD, "step_loss_mask": 0}, CALL)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("1+1=", False),
        ([USER], False),
        ([USER, TOLD], True),
        ([USER, TOLD, USER], False),
        ([USER, {**TOLD, "step_loss_mask": 0}], False),
        ([USER, TOLD, USER, {**TOLD, "step_loss_mask": 0}], True),
    ],
)
def test_a_conversation_shows_an_answer_if_it_ends_with_the_assistant_and_trains_one(prompt: Any, shown: bool) -> None:
    assert shows_an_answer(prompt) == shown
