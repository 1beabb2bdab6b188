"""States in a real Redis while the work goes on."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from services.rollout.update_progress import UpdateProgress
from shared.enrolment import AT_WORK, Part, State, read_part
from shared.logs import Log
from shared.topology import Keys
from tests.conftest import until

KEYS, ENGINE = Keys("r1"), "engine-a"
GO = Part("go", "announcement", "life-1", 1, "group", 1, 2)


def progress_in(redis: Redis) -> UpdateProgress:
    return UpdateProgress(redis, KEYS, 3, ENGINE, GO, Log("engine"))


async def test_every_state_that_is_entered_can_be_read_while_the_work_goes_on(redis: Redis) -> None:
    async with progress_in(redis).told() as progress:
        for state in sorted(AT_WORK - {"go"}):
            progress.enter(state)
            await until(lambda state=state: _is(redis, state), 5)
    part = await read_part(redis, KEYS, 3, ENGINE)
    assert part is not None
    assert (part.announcement, part.incarnation, part.group) == ("announcement", "life-1", "group")
    assert part.since > 0


async def test_nothing_is_written_after_the_end_so_that_the_last_word_stands(redis: Redis) -> None:
    async with progress_in(redis).told() as progress:
        progress.enter("loading")
    before = await read_part(redis, KEYS, 3, ENGINE)
    progress.enter("proving")
    await asyncio.sleep(0)
    assert await read_part(redis, KEYS, 3, ENGINE) == before


async def test_a_redis_that_is_away_holds_up_no_update(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, tried = True, asyncio.Event()
    original = redis.pipeline

    def pipeline(transaction: bool) -> object:
        if failing:
            tried.set()
            raise ConnectionError("refused")
        return original(transaction)

    monkeypatch.setattr(redis, "pipeline", pipeline)
    async with progress_in(redis).told() as progress:
        progress.enter("loading")
        await asyncio.wait_for(tried.wait(), 5)
        failing = False
        progress.enter("proving")
        await until(lambda: _is(redis, "proving"), 5)


async def _is(redis: Redis, state: State) -> bool:
    part = await read_part(redis, KEYS, 3, ENGINE)
    return part is not None and part.state == state
