"""`module:function` of a user -> the reward that scores by it, an attempt or a whole group at a time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from services.reward.score import Reward, Score, ScoringFailed, read_score
from shared.errors import PluginError
from shared.messages import Rollout
from shared.plugins import load_function
from shared.tasks import is_told_to_end

EXAMPLE = "async def score(rollout: Rollout) -> float"
GROUP_EXAMPLE = "async def score(rollouts: list[Rollout]) -> list[float]"
CONCURRENCY = 256
"""Most calls of the user's function at a time."""


def load_reward(path: str, deadline_s: float) -> Reward:
    """The name of the first parameter says what the function takes: `rollout` one attempt, `rollouts` a whole group.

    Raises:
        PluginError: it does not load, is not async or takes something else.
    """
    function = load_function(path, ("rollout",), EXAMPLE, is_async=True)
    name = next(iter(inspect.signature(function).parameters))
    if name not in ("rollout", "rollouts"):
        raise PluginError(f"{path}({name}): write `{EXAMPLE}`, or `{GROUP_EXAMPLE}` to score a whole group at once")
    call = _bounded(function, deadline_s)
    return Reward(score_group=_by_group(call)) if name == "rollouts" else Reward(score_rollout=_by_attempt(call))


def _bounded(function: Callable[..., Any], deadline_s: float) -> Callable[[Any], Awaitable[Any]]:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def call(argument: Any) -> Any:
        async with slots:
            try:
                return await asyncio.wait_for(function(argument), deadline_s)
            except TimeoutError as error:
                raise ScoringFailed(
                    f"the reward plugin took longer than reward.deadline_s = {deadline_s:g} s"
                ) from error
            except asyncio.CancelledError as error:
                if is_told_to_end():
                    raise
                raise ScoringFailed("the reward plugin cancelled itself; let it return or raise instead") from error

    return call


def _by_attempt(call: Callable[[Any], Awaitable[Any]]) -> Callable[[Rollout], Awaitable[Score]]:
    async def score(rollout: Rollout) -> Score:
        return read_score(await call(rollout))

    return score


def _by_group(call: Callable[[Any], Awaitable[Any]]) -> Callable[[list[Rollout]], Awaitable[list[Score]]]:
    async def score_group(rollouts: list[Rollout]) -> list[Score]:
        given = await call(rollouts)
        if not isinstance(given, Sequence) or len(cast(Sequence[Any], given)) != len(rollouts):
            found = f"{len(given)} scores" if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise ScoringFailed(
                f"the reward plugin returned {found} for {len(rollouts)} attempts; return a list, one each"
            )
        return [read_score(one) for one in cast(Sequence[Any], given)]

    return score_group
