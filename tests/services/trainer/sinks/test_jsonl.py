"""Lines of steps: appended, and cut back to what is whole and what the ledger still knows."""

import json
from pathlib import Path

import pytest

from services.trainer.sinks.jsonl import NAME, JsonLines
from tests.services.trainer.sinks.rows import place, rows


def written(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / NAME).read_text("utf-8").splitlines()]


def test_a_row_is_a_line_with_its_step_first(tmp_path: Path) -> None:
    sink = JsonLines(place(tmp_path), 0)
    assert sink.last == 0
    sink.write(rows(1, 1))
    assert (tmp_path / NAME).read_text("utf-8") == '{"step": 1, "loss": 1.0, "tokens": 101.0}\n'
    sink.close()


@pytest.mark.parametrize(
    ("tail", "newest", "last"), [("", 5, 5), ("", 9, 5), ('{"step": 6, "l', 9, 5), ("", 3, 3), ("", 0, 0)]
)
def test_it_goes_on_after_the_last_whole_line_that_the_ledger_covers(
    tmp_path: Path, tail: str, newest: int, last: int
) -> None:
    sink = JsonLines(place(tmp_path), 0)
    sink.write(rows(1, 2))
    sink.write(rows(3, 5))
    sink.close()
    with (tmp_path / NAME).open("a", encoding="utf-8") as file:
        file.write(tail)
    again = JsonLines(place(tmp_path), newest)
    assert again.last == last
    again.write(rows(last + 1, last + 2))
    again.close()
    assert written(tmp_path) == list(range(1, last + 3))
