"""A seed -> sums from reasoning-gym: demonstrations, prompts for RL, pairs of answers, held-out rows apart from all."""

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


HELD_OUT = "held-out"


def write_rows(folder: Path, seed: int, counts: RowCounts, worked_share: float) -> dict[str, Path]:
    """Write a file for each dataset of the demo; returns them by the name of the dataset.

    `demonstrations` answer `407+774=` either without thinking (`<think></think>1181`) or after adding the columns from
    the right, each with its carry (`<think>11 08 11</think>1181`), the latter for `worked_share` of the rows;
    `worked-demonstrations` are the same sums, all of them worked. `sums` and `held-out` rows carry only the answer.
    `pairs` are the sums of `sums`: the worked answer is chosen, and one without thinking that is wrong in a digit is
    rejected. No other sum stands in two files.
    """
    problems = _problems(seed, counts.demonstrations + counts.prompts + counts.held_out)
    chance = random.Random(seed)
    rest = counts.held_out + counts.prompts
    prompts, shown = problems[counts.held_out : rest], problems[rest:]
    rows = {
        HELD_OUT: [_row(problem) for problem in problems[: counts.held_out]],
        "sums": [_row(problem) for problem in prompts],
        "demonstrations": [_demonstration(problem, chance.random() < worked_share) for problem in shown],
        "worked-demonstrations": [_demonstration(problem, True) for problem in shown],
        "pairs": [_pair(problem, chance) for problem in prompts],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in rows}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), "utf-8")
    return files


def _problems(seed: int, count: int) -> list[tuple[str, str]]:
    """Different (expression, answer) pairs: two numbers of four or five digits."""
    from reasoning_gym import create_dataset  # noqa: PLC0415 - only the demo needs it, and it takes a second to import

    found: dict[str, str] = {}
    source = create_dataset(
        "basic_arithmetic",
        seed=seed,
        size=2 * count,
        min_terms=2,
        max_terms=2,
        min_digits=4,
        max_digits=5,
        operators=["+"],
        allow_parentheses=False,
        allow_negation=False,
    )
    for item in source:
        found.setdefault(item["metadata"]["expression"].replace(" ", ""), item["answer"])
        if len(found) == count:
            return list(found.items())
    raise AssertionError(f"only {len(found)} different sums were made; {count} are asked for")


def _row(problem: tuple[str, str]) -> Row:
    expression, answer = problem
    return {"prompt": f"{expression}=", "label": answer}


def _demonstration(problem: tuple[str, str], worked: bool) -> Row:
    expression, answer = problem
    return {"prompt": f"{expression}=", "label": _worked(problem) if worked else f"<think></think>{answer}"}


def _pair(problem: tuple[str, str], chance: random.Random) -> Row:
    expression, answer = problem
    rejected = f"<think></think>{_slip(answer, chance)}"
    return {"prompt": f"{expression}=", "chosen": _worked(problem), "rejected": rejected}


def _worked(problem: tuple[str, str]) -> str:
    expression, answer = problem
    return f"<think>{' '.join(_column_sums(expression))}</think>{answer}"


def _slip(number: str, chance: random.Random) -> str:
    """`1181` -> `1281`: another digit in one place."""
    place = chance.randrange(len(number))
    others = [digit for digit in "123456789" if digit != number[place]]
    return number[:place] + chance.choice(others) + number[place + 1 :]


def _column_sums(expression: str) -> list[str]:
    """`407+774` -> 11, 08, 11: each column from the right with its carry, two digits each."""
    left, _, right = expression.partition("+")
    width, carry, sums = max(len(left), len(right)), 0, list[str]()
    for a, b in zip(reversed(left.zfill(width)), reversed(right.zfill(width)), strict=True):
        total = int(a) + int(b) + carry
        carry = total // 10
        sums.append(f"{total:02d}")
    return sums
