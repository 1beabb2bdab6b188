"""What a reward function returns -> a checked Score: a finite number, and details that can travel."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.messages import Attempt, Rollout

Logprobs = NDArray[np.float32]


class ScoringFailed(Exception):
    """One attempt got no score; it is tried again later and given up after a number of deliveries."""


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one attempt, and numbers or texts that explain it."""

    value: float
    detail: dict[str, Any] = field(default_factory=dict[str, Any])
    teacher_logprobs: Logprobs | None = None
    """[tokens] of the attempt after its prompt, as in Attempt; None where no teacher is asked."""


async def _at_once() -> None:
    """A reward that is computed here is always available."""


@dataclass(frozen=True, slots=True)
class Reward:
    """How a run scores, in one of three ways."""

    score: Callable[[Attempt], Awaitable[Score]] | None = None
    """Attempt by attempt, without reading tokens."""
    score_rollout: Callable[[Rollout], Awaitable[Score]] | None = None
    """Attempt by attempt, complete, which costs one more read of each."""
    score_group: Callable[[list[Rollout]], Awaitable[list[Score]]] | None = None
    """Whole groups, complete."""
    available: Callable[[], Awaitable[None]] = _at_once
    """Returns once it makes sense to take new work; a remote reward lets it wait during an outage."""


def read_score(given: object) -> Score:
    """A number, or `{"score": number, ...details}` -> Score.

    Raises:
        ScoringFailed: anything else, NaN or infinity; says what to return instead.
    """
    if not isinstance(given, dict):
        return Score(_number(given))
    if "score" not in given:
        raise ScoringFailed(f'the reward returned a dict without "score" ({", ".join(map(str, given))}); add it')
    detail = {str(name): _detail(str(name), value) for name, value in given.items() if name != "score"}
    return Score(_number(given["score"]), detail)


def _number(value: object) -> float:
    if not isinstance(value, Real):
        raise ScoringFailed(f"the reward returned a {type(value).__name__}; return a number or a dict with a score")
    number = float(value)
    if not math.isfinite(number):
        raise ScoringFailed(f"the reward returned {number}; return a finite number")
    return number


def _detail(name: str, value: object) -> float | str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Real):
        raise ScoringFailed(f"reward detail {name} is a {type(value).__name__}; return numbers and texts as details")
    number = float(value)
    return number if math.isfinite(number) else str(number)
