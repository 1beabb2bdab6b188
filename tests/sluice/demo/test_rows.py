"""The demo's rows: no prompt in two files, answers that are right."""

import json
from pathlib import Path

from sluice.demo.rows import RowCounts, write_rows

COUNTS = RowCounts(demonstrations=200, prompts=100, held_out=50)


COUNTED = {"held-out": 50, "sums": 100, "pairs": 100, "demonstrations": 200, "worked-demonstrations": 200}
APART = ("demonstrations", "sums", "held-out")
"""Datasets that share no sum."""


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def value(prompt: str) -> int:
    return sum(int(number) for number in prompt.removesuffix("=").split("+"))


def test_held_out_rows_are_in_no_other_file(tmp_path: Path) -> None:
    files = write_rows(tmp_path, 0, COUNTS, 0.4)
    prompts = {name: {row["prompt"] for row in read(file)} for name, file in files.items()}
    assert {name: len(found) for name, found in prompts.items()} == COUNTED
    assert len(set.union(*(prompts[name] for name in APART))) == 350
    assert prompts["worked-demonstrations"] == prompts["demonstrations"]
    assert prompts["pairs"] == prompts["sums"]


def test_every_answer_is_the_sum_and_the_worked_ones_add_the_columns(tmp_path: Path) -> None:
    files = write_rows(tmp_path, 1, COUNTS, 0.4)
    for name in ("held-out", "sums"):
        assert all(int(row["label"]) == value(row["prompt"]) for row in read(files[name]))
    demonstrations = read(files["demonstrations"])
    assert all(row["label"].startswith("<think>") for row in demonstrations)
    worked = [row for row in demonstrations if not row["label"].startswith("<think></think>")]
    assert 50 <= len(worked) <= 110
    all_worked = read(files["worked-demonstrations"])
    for row in [*demonstrations, *all_worked]:
        assert int(row["label"].rpartition("</think>")[2]) == value(row["prompt"])
    for row in [*worked, *all_worked]:
        columns = row["label"].removeprefix("<think>").partition("</think>")[0].split()
        digits = [column[-1] for column in reversed(columns)]
        assert int(columns[-1][0] + "".join(digits)) == value(row["prompt"])


def test_a_pair_prefers_the_worked_right_answer_to_a_bare_one_that_is_wrong_in_a_digit(tmp_path: Path) -> None:
    files = write_rows(tmp_path, 2, COUNTS, 0.4)
    for row in read(files["pairs"]):
        right, (thoughts, answer) = str(value(row["prompt"])), row["chosen"].split("</think>")
        assert (answer, bool(thoughts.removeprefix("<think>"))) == (right, True)
        wrong = row["rejected"].removeprefix("<think></think>")
        assert [a == b for a, b in zip(right, wrong, strict=True)].count(False) == 1
        assert str(int(wrong)) == wrong, "no number begins with 0"


def test_another_seed_makes_other_rows(tmp_path: Path) -> None:
    first, second = (write_rows(tmp_path / str(seed), seed, COUNTS, 0.4)["held-out"].read_text() for seed in (0, 1))
    assert first != second
