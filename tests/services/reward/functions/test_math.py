"""Mathematical equality in processes that are killed when they overrun."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from services.reward.functions.answer_pool import AnswerPool
from services.reward.functions.math import score_with
from services.reward.score import Score, ScoringFailed
from tests.services.reward.reward_cases import rollout

SLOW = "$9^{9^{9^{9}}}$"
"""An answer whose evaluation does not end."""


@pytest.fixture
async def pool() -> AsyncIterator[AnswerPool]:
    """One process with a time limit of two seconds."""
    one = AnswerPool(1, 2.0)
    await one.start()
    yield one
    await one.close()


async def test_equal_values_score_one_however_they_are_written(pool: AnswerPool) -> None:
    score = score_with(pool)
    for text, label, reward in (
        ("so the answer is \\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("The answer is 3/4.", "\\frac{3}{4}", 1.0),
        ("$x = 12$", 12, 1.0),
        ("$x = 13$", 12, 0.0),
        ("no idea", "12", 0.0),
    ):
        assert (await score(rollout(0, 0, text, label=label))).value == reward, text


async def test_an_answer_over_the_time_limit_scores_zero_and_the_next_one_is_scored(pool: AnswerPool) -> None:
    score = score_with(pool)
    begun = time.monotonic()
    slow, ticks = asyncio.ensure_future(score(rollout(0, 0, SLOW, label="3"))), 0
    while not slow.done():
        await asyncio.sleep(0.05)
        ticks += 1
    assert slow.result() == Score(0.0, {"timed_out": True})
    assert ticks > 10, "the event loop went on"
    assert time.monotonic() - begun < 10
    assert (await score(rollout(0, 0, "3", label="3"))).value == 1.0


async def test_a_process_that_dies_over_an_answer_is_replaced_and_the_answer_is_an_error(pool: AnswerPool) -> None:
    (process,) = pool._running  # pyright: ignore[reportPrivateUsage]
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ScoringFailed, match="died over this one"):
        await pool.check("1", "1")
    assert await pool.check("1", "1") == Score(1.0)


async def test_closing_leaves_no_process(pool: AnswerPool) -> None:
    (process,) = pool._running  # pyright: ignore[reportPrivateUsage]
    asking = asyncio.ensure_future(pool.check(SLOW, "3"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await pool.close()
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
