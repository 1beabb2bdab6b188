"""Engines that are ready and wait for the others, and what becomes of them when the weights do not come."""

import asyncio
import socket
import time
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from services.rollout.update_progress import NotCleared, UpdateProgress
from shared.enrolment import Part, Word, say
from shared.logs import Log
from shared.redis_connection import connect
from shared.runs import announce, present
from tests.conftest import until
from tests.services.rollout.scripted_server import KEYS, NAME, RUN, UPDATE, Server, Start, answered, following, true


@pytest.fixture
def start(redis: Redis) -> Start:
    return partial(following, redis)


async def test_an_engine_that_is_ready_waits_paused_until_the_trainer_says_that_all_are(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.begin(1, "g1")
        await sidecar.reaches(1, "ready")
        await say(sidecar.redis, KEYS, 1, [NAME], Word("g1", "wait"))
        assert sidecar.server.calls == UPDATE[:3]
        await say(sidecar.redis, KEYS, 1, [NAME], Word("g1", "send"))
        await sidecar.reaches(1, "done")
    assert sidecar.server.calls == UPDATE


@pytest.mark.parametrize("word", ["over", None])
async def test_an_engine_whose_weights_will_not_come_goes_on_with_those_that_it_has(
    start: Start, word: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rollout.update_progress.SILENCE_S", 0.2)
    monkeypatch.setattr("services.rollout.pull_weights.LEFT_ALONE_S", 0.2)
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
        await sidecar.announce(2, "g2")
        await sidecar.begin(2, "g2")
        if word:
            await say(sidecar.redis, KEYS, 2, [NAME], Word("g2", word))
        failed = await sidecar.reaches(2, "failed")
        assert sidecar.server.calls[-2:] == ["/end_weight_update", "/continue_generation"]
        assert ("silent" in failed.reason) == (word is None)
        assert "pause" in failed.seconds
        served = sidecar.proven
        await until(lambda: true(sidecar.proven > served), 5)
        await sidecar.announce(1, "back")
        await until(lambda: answered(sidecar, "back"), 5)
        await sidecar.reaches(1, "done")
    assert not sidecar.update.mixed


async def test_an_engine_whose_hashes_are_the_old_ones_after_a_broken_broadcast_generates_again(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
        sidecar.server.refuse["/update_weights_from_distributed"] = 1
        await sidecar.announce(2, "g2")
        await sidecar.go(2, "g2")
        await sidecar.reaches(2, "failed")
    assert sidecar.server.calls[-3:] == ["/end_weight_update", "/weights_checker", "/continue_generation"]
    assert not sidecar.update.mixed


async def test_an_engine_that_was_left_in_the_middle_of_an_update_stays_paused_until_it_holds_a_version(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rollout.update_progress.SILENCE_S", 0.2)
    async with start() as sidecar:
        sidecar.update.mixed = True  # as of a server that was there before the sidecar
        await sidecar.announce(1, "g1")
        await sidecar.begin(1, "g1")
        await sidecar.reaches(1, "failed")
        assert "/continue_generation" not in sidecar.server.calls
        await sidecar.announce(2, "g2")
        await sidecar.go(2, "g2")
        await sidecar.reaches(2, "done")
        assert sidecar.server.calls[-1] == "/continue_generation"
    assert not sidecar.update.mixed


async def test_a_redis_that_hangs_is_as_silent_as_a_trainer_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.rollout.update_progress.SILENCE_S", 0.2)
    monkeypatch.setattr("services.rollout.update_progress.ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # connections wait to be accepted
        redis = connect(f"redis://127.0.0.1:{hanging.getsockname()[1]}")
        progress = UpdateProgress(redis, KEYS, 1, NAME, Part("go", "g1", "life-1", 1), Log("engine"))
        async with asyncio.timeout(5):
            with pytest.raises(NotCleared, match="silent"):
                await progress.cleared(time.time() + 60)
        await redis.aclose()


async def test_a_silent_engine_has_no_part_in_a_version_and_no_sign_of_life_until_it_answers(
    start: Start, redis: Redis
) -> None:
    server = Server(silent={"/health"})
    await announce(redis, RUN, f"engine-up/{NAME}")
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await until(lambda: _is_gone(redis), 5)
        assert await sidecar.part(1) is None
        server.silent.clear()
        await sidecar.reaches(1, "enrolled")


async def _is_gone(redis: Redis) -> bool:
    return not await present(redis, RUN)
