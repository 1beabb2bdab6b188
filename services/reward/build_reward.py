"""`[reward]` settings of a run -> its reward, running: processes started, service reached, plugin loaded."""

import contextlib
import os
from collections.abc import AsyncGenerator

from services.reward.functions import contains, exact_match
from services.reward.functions.answer_pool import AnswerPool
from services.reward.functions.math import score_with
from services.reward.functions.plugin import load_reward
from services.reward.remote.open_remote import open_remote
from services.reward.score import Reward
from services.reward.tell import Tell
from shared.run_settings import RewardSettings

MATH_LIMIT_S = 5.0
"""Seconds for one comparison, unless reward.deadline_s is shorter."""
MOST_PROCESSES = 8


@contextlib.asynccontextmanager
async def open_reward(run: str, settings: RewardSettings, may_reject: bool, tell: Tell) -> AsyncGenerator[Reward]:
    """The reward of a run, as long as the block runs; RunRejected or PluginError if it cannot be had."""
    if settings.type == "exact_match":
        yield Reward(exact_match.score)
    elif settings.type == "contains":
        yield Reward(contains.score)
    elif settings.type == "plugin":
        yield load_reward(settings.plugin, settings.deadline_s)
    elif settings.type == "remote":
        async with open_remote(run, settings, may_reject, tell) as reward:
            yield reward
    else:
        async with _math(settings.deadline_s) as reward:
            yield reward


@contextlib.asynccontextmanager
async def _math(deadline_s: float) -> AsyncGenerator[Reward]:
    pool = AnswerPool(min(os.cpu_count() or 1, MOST_PROCESSES), min(deadline_s, MATH_LIMIT_S))
    try:
        await pool.start()
        yield Reward(score_with(pool))
    finally:
        await pool.close()
