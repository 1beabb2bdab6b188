"""Preference rows: every usual way to write one makes the same pair; every malformed one is told what to write."""

from typing import Any

import pytest

from services.gateway.check_row import Row, RowKeys, check_row, encode_row
from services.gateway.refusals import RowError

KEYS = RowKeys()
ASK = {"role": "user", "content": "1+1="}
GOOD, BAD = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
MUTED = {**GOOD, "step_loss_mask": 0}
MORE = {"role": "user", "content": "sure?"}


def row(**fields: Any) -> dict[str, Any]:
    return {"prompt": "1+1=", "chosen": "2", "rejected": "3", **fields}


def test_texts_answer_a_text_or_a_conversation() -> None:
    assert check_row(row(), KEYS) == Row("1+1=", None, {}, "2", "3")
    assert check_row(row(prompt=[ASK]), KEYS) == Row([ASK], None, {}, "2", "3")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "1+1=", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "1+1=", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": None, "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    ],
)
def test_conversations_are_cut_at_the_end_of_the_prompt(fields: dict[str, Any]) -> None:
    assert check_row(fields, KEYS) == Row([ASK], None, {}, [GOOD], [BAD])


def test_conversations_may_part_late_and_go_on_for_several_turns() -> None:
    chosen, rejected = [ASK, GOOD, MORE, GOOD], [ASK, GOOD, MORE, BAD, MORE, GOOD]
    found = check_row({"chosen": chosen, "rejected": rejected}, KEYS)
    assert (found.prompt, found.chosen, found.rejected) == ([ASK, GOOD, MORE], [GOOD], [BAD, MORE, GOOD])


def test_a_pair_keeps_label_and_metadata_and_may_have_other_keys() -> None:
    keys = RowKeys(chosen="better", rejected="worse")
    fields = {"prompt": "a", "better": "b", "worse": "c", "label": 1, "metadata": {"x": 2}}
    assert check_row(fields, keys) == Row("a", 1, {"x": 2}, "b", "c")
    assert check_row(fields, KEYS) == Row("a", 1, {"x": 2})


def test_a_pair_is_stored_and_a_row_without_one_takes_no_room_for_it() -> None:
    assert b'"chosen":"2","rejected":"3"' in encode_row(check_row(row(), KEYS))
    assert b"chosen" not in encode_row(Row("a", None, {}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (row(rejected=None), "'chosen' is here and 'rejected' is not; write both answers of the pair"),
        ({"prompt": "1+1=", "rejected": "3"}, "'rejected' is here and 'chosen' is not"),
        (row(chosen=2), "'chosen' is a number; write text or a list of chat messages"),
        (row(chosen=""), "'chosen' is empty; write the text of the answer"),
        (row(rejected=[]), "'rejected' has no messages; write at least one"),
        (row(chosen=[{"role": "assistant"}]), "'chosen': message 0 is not"),
        (row(chosen=[{**GOOD, "step_loss_mask": 2}]), "'step_loss_mask' is 2; write 1"),
        (row(rejected="2"), "'chosen' and 'rejected' are the same; write two different answers"),
        (row(chosen=[GOOD]), "one of 'chosen' and 'rejected' is text, the other messages; write both alike"),
        ({"chosen": "2", "rejected": "3"}, "'prompt' is missing; name the key"),
        (row(prompt=7), "'prompt' is a number"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "do not begin with the same message; write the prompt, or both"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD, MORE, BAD]}, "'chosen' holds nothing but the prompt"),
        (row(chosen=[ASK, GOOD], rejected=[BAD]), "'chosen': the first message after the prompt is of 'user'"),
        (row(chosen=[GOOD], rejected=[BAD, MORE]), "'rejected': the last message after the prompt is of 'user'"),
        (row(chosen=[MUTED], rejected=[BAD]), "'chosen': every message of the assistant is muted"),
        (row(metadata=1), "'metadata' is a number"),
    ],
)
def test_a_row_that_makes_no_pair_is_refused_with_what_to_write(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        check_row(fields, KEYS)
