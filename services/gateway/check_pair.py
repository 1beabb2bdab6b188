"""The prompt and both answers of a preference row, as uploaded -> the same, the prompt apart from the answers."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from services.gateway.check_messages import check_written, is_trained
from services.gateway.refusals import RowError
from shared.messages import Turns

Written = str | Turns


@dataclass(frozen=True, slots=True)
class PairKeys:
    """The names under which a row keeps what a pair consists of."""

    prompt: str
    chosen: str
    rejected: str


def has_pair(fields: dict[str, Any], keys: PairKeys) -> bool:
    """A row with one of the two answers is meant to have both."""
    return fields.get(keys.chosen) is not None or fields.get(keys.rejected) is not None


def check_pair(fields: dict[str, Any], keys: PairKeys) -> tuple[Written, Written, Written]:
    """Prompt, chosen and rejected answer.

    Answers that are messages may begin with the prompt, or hold it where the row has none: the messages that both
    begin with are the prompt then. What is left of each begins and ends with a message of the assistant.

    Raises:
        RowError: the row makes no pair.
    """
    chosen, rejected = (_answer(fields, key, other) for key, other in _both_ways(keys.chosen, keys.rejected))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError(f"one of {keys.chosen!r} and {keys.rejected!r} is text, the other messages; write both alike")
    if chosen == rejected:
        raise RowError(f"{keys.chosen!r} and {keys.rejected!r} are the same; write two different answers")
    prompt = fields.get(keys.prompt)
    asked = None if prompt is None else check_written(prompt, keys.prompt, "that the model continues")
    if isinstance(chosen, str) or isinstance(rejected, str):
        if asked is None:
            raise RowError(f"{keys.prompt!r} is missing; name the key that holds the prompt with ?prompt_key=")
        return asked, chosen, rejected
    return _apart(asked, chosen, rejected, keys)


def _both_ways(one: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (one, other), (other, one)


def _answer(fields: dict[str, Any], key: str, other: str) -> Written:
    if fields.get(key) is None:
        raise RowError(
            f"{other!r} is here and {key!r} is not; write both answers of the pair, or name their keys with"
            " ?chosen_key= and ?rejected_key="
        )
    return check_written(fields[key], key, "of the answer")


def _apart(asked: Written | None, chosen: Turns, rejected: Turns, keys: PairKeys) -> tuple[Turns, Turns, Turns]:
    if asked is None:
        together = takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False))
        begun = [turn for turn, _ in together]
        if not begun:
            raise RowError(
                f"{keys.prompt!r} is missing, and {keys.chosen!r} and {keys.rejected!r} do not begin with the same"
                " message; write the prompt, or both conversations from their beginning"
            )
        asked, cut = begun, len(begun)
    else:
        asked = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        cut = len(asked) if chosen[: len(asked)] == asked == rejected[: len(asked)] else 0
    _check_answer(chosen[cut:], keys.chosen)
    _check_answer(rejected[cut:], keys.rejected)
    return asked, chosen[cut:], rejected[cut:]


def _check_answer(answer: Turns, key: str) -> None:
    if not answer:
        raise RowError(f"{key!r} holds nothing but the prompt; add the answer, a message of the assistant")
    for place, message in (("first", answer[0]), ("last", answer[-1])):
        if message["role"] != "assistant":
            raise RowError(
                f"{key!r}: the {place} message after the prompt is of {message['role']!r}; an answer begins and ends"
                " with a message of 'assistant'"
            )
    if not any(map(is_trained, answer)):
        raise RowError(f"{key!r}: every message of the assistant is muted; leave one without step_loss_mask = 0")
