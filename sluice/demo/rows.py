"""A seed -> sums from reasoning-gym: demonstrations for SFT, prompts for GRPO, and held-out rows that neither holds."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many rows of each kind; all prompts are different."""

    demonstrations: int
    prompts: int
    held_out: int


def write_rows(folder: Path, seed: int, counts: RowCounts, terms: int, worked_share: float) -> dict[str, Path]:
    """Write sft.jsonl, train.jsonl and held_out.jsonl.

    A demonstration answers `9+2-5+8=` either at once (`14`) or after writing down the running totals
    (`<think>11 6</think>14`), the latter for `worked_share` of the rows. Prompts and held-out rows carry only the
    answer. No prompt stands in two files.
    """
    problems = _problems(seed, counts.demonstrations + counts.prompts + counts.held_out, terms)
    chance = random.Random(seed)
    rest = counts.held_out + counts.prompts
    rows = {
        "held_out": [_row(problem) for problem in problems[: counts.held_out]],
        "train": [_row(problem) for problem in problems[counts.held_out : rest]],
        "sft": [_demonstration(problem, chance.random() < worked_share) for problem in problems[rest:]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in rows}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), "utf-8")
    return files


def _problems(seed: int, count: int, terms: int) -> list[tuple[str, str]]:
    """Different (expression, answer) pairs of one-digit terms, in random order."""
    from reasoning_gym import create_dataset  # noqa: PLC0415 - only the demo needs it, and it takes a second to import

    found: dict[str, str] = {}
    source = create_dataset(
        "chain_sum", seed=seed, size=3 * count, min_terms=terms, max_terms=terms, min_digits=1, max_digits=1
    )
    for item in source:
        found.setdefault(item["metadata"]["expression"].replace(" ", ""), item["answer"])
        if len(found) == count:
            return list(found.items())
    raise AssertionError(f"chain_sum has only {len(found)} different sums of {terms} terms; {count} are asked for")


def _row(problem: tuple[str, str]) -> Row:
    expression, answer = problem
    return {"prompt": f"{expression}=", "label": answer}


def _demonstration(problem: tuple[str, str], worked: bool) -> Row:
    expression, answer = problem
    solution = f"<think>{' '.join(_running_totals(expression))}</think>{answer}"
    return {"prompt": f"{expression}=", "label": solution if worked else answer}


def _running_totals(expression: str) -> list[str]:
    """`9+2-5+8` -> 11, 6: every total but the last, which is the answer."""
    terms = expression.replace("-", "+-").split("+")
    numbers = [int(term) for term in terms if term]
    totals = [sum(numbers[: count + 1]) for count in range(1, len(numbers) - 1)]
    return [str(total) for total in totals]
