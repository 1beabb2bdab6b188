"""A value of an uploaded row -> text or chat messages, or a sentence that says what is wrong with it."""

from typing import Any, cast

from services.gateway.refusals import RowError
from shared.messages import MUTE, Turns

EXAMPLE = '{"role": "user", "content": "1+1="}'


def check_written(value: Any, key: str, purpose: str) -> str | Turns:
    """RowError unless the value is text, or a list of messages, and not empty; `purpose` is what the text is for."""
    if isinstance(value, str):
        if not value:
            raise RowError(f"{key!r} is empty; write the text {purpose}")
        return value
    if not isinstance(value, list):
        raise RowError(f"{key!r} is {type_name(value)}; write text or a list of chat messages")
    turns = cast(list[Any], value)
    if not turns:
        raise RowError(f"{key!r} has no messages; write at least one, such as {EXAMPLE}")
    for number, turn in enumerate(turns):
        _check_message(turn, f"{key!r}: message {number}")
    return cast(Turns, turns)


def is_trained(message: dict[str, Any]) -> bool:
    """The assistant's messages are, unless they are muted."""
    return message.get("role") == "assistant" and message.get(MUTE) != 0


def shows_an_answer(prompt: str | Turns) -> bool:
    """Messages that end with one of the assistant, and of which one is trained."""
    return not isinstance(prompt, str) and prompt[-1].get("role") == "assistant" and any(map(is_trained, prompt))


def _check_message(turn: Any, where: str) -> None:
    if not isinstance(turn, dict):
        raise RowError(f"{where} is not {EXAMPLE} or the like")
    message = cast(dict[str, Any], turn)
    role, content = message.get("role"), message.get("content")
    says_something = isinstance(content, str | list) or (content is None and bool(message.get("tool_calls")))
    if not (isinstance(role, str) and role and says_something):
        raise RowError(f"{where} is not {EXAMPLE} or the like")
    if message.get(MUTE) not in (None, 0, 1):
        raise RowError(f"{where}: {MUTE!r} is {message[MUTE]!r}; write 1 to train the message, 0 to leave it out")


def type_name(value: Any) -> str:
    """What a JSON value is, for a sentence."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
