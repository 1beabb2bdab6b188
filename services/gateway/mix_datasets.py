"""Shares of datasets and a cursor -> which dataset and position comes next, by smooth weighted round robin."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is in one dataset."""

    epoch: int = 0
    position: int = 0
    credit: float = 0.0
    """Turns that the dataset is owed; kept, so that a change of weights acts from then on only."""


Cursor = Mapping[str, Standing]


@dataclass(frozen=True, slots=True)
class Draw:
    """The next row to release, before the order of its epoch is applied."""

    dataset: str
    epoch: int
    position: int


def draw(
    cursor: Cursor, weights: Mapping[str, float], sizes: Mapping[str, int], count: int
) -> tuple[list[Draw], Cursor]:
    """The next `count` draws, and the cursor behind them; a function of its arguments, so it can be replayed.

    Every draw adds its share to each dataset's credit, takes from the largest credit (the first of equals) and
    subtracts 1 from it. A dataset of weight 0 is paused: it keeps its standing.
    """
    total = sum(weights.values())
    assert total > 0, "a run with all weights at 0 is refused when it is created"
    shares = {name: weight / total for name, weight in weights.items() if weight > 0}
    standings = {**dict.fromkeys(weights, Standing()), **cursor}
    draws: list[Draw] = []
    for _ in range(count):
        credits_now = {name: standings[name].credit + share for name, share in shares.items()}
        chosen = max(credits_now, key=credits_now.__getitem__)
        at = standings[chosen]
        draws.append(Draw(chosen, at.epoch, at.position))
        for name, credit in credits_now.items():
            standings[name] = Standing(standings[name].epoch, standings[name].position, credit)
        standings[chosen] = _behind(at, sizes[chosen], credits_now[chosen] - 1)
    return draws, standings


def dump_cursor(cursor: Cursor) -> str:
    return json.dumps({name: asdict(standing) for name, standing in cursor.items()}, separators=(",", ":"))


def load_cursor(text: str) -> Cursor:
    return {name: Standing(**fields) for name, fields in json.loads(text).items()}


def _behind(at: Standing, size: int, credit: float) -> Standing:
    if at.position + 1 < size:
        return Standing(at.epoch, at.position + 1, credit)
    return Standing(at.epoch + 1, 0, credit)
