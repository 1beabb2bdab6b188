"""The reward service of a run with a served teacher: what it refuses, what it stores, what it does in an outage."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from services.reward.remote import breaker as breaker_module
from services.reward.remote.batched_calls import CONCURRENCY
from services.reward.serve import serve
from services.reward.teacher.vocabulary import PROBE
from shared.deployment import Deployment
from shared.errors import RunRejected
from shared.messages import Event
from shared.rollout_parts import BYTES_PER_TOKEN
from shared.run_settings import RunSettings
from shared.runs import RunRecord, State
from shared.service import Place, Serving
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, ROLLOUTS, Keys
from tests.conftest import until
from tests.services.reward.reward_cases import (
    LOG,
    RUN,
    all_settled,
    counters,
    dead,
    emitted,
    group_join,
    rollout,
    send,
    stored,
)
from tests.services.reward.teacher.teacher_server import TeacherServer, expected
from tests.services.reward.teacher.test_vocabulary import tokenizer


def settings(url: str, model: str = "m", deadline_s: float = 5.0, **sections: Any) -> RunSettings:
    tree = {
        "name": RUN,
        "model": {"path": model},
        "data": {"datasets": [{"name": "sums"}]},
        "trainer": {"steps": 1, "distillation": {"url": url, "coef": 1.0, "deadline_s": deadline_s}},
    }
    return RunSettings.model_validate({**tree, **sections})


def serving(redis: Redis, run: RunSettings, ready: asyncio.Event, state: State = "starting") -> Serving:
    record = RunRecord(RUN, run, state, "", 0.0, None, None)
    return Serving(Place(Deployment(), redis, LOG, "worker"), record, ready.set)


@contextlib.asynccontextmanager
async def scoring(redis: Redis, run: RunSettings, state: State = "running") -> AsyncIterator[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(serve(serving(redis, run, ready, state)))
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield
    finally:
        await end(task)


async def events(redis: Redis) -> list[str]:
    return [event.event for _, event in await Stream[Event](redis, RUN, EVENTS).read()]


async def test_a_run_that_only_evaluates_asks_no_teacher(redis: Redis) -> None:
    nobody = settings(f"http://127.0.0.1:{free_port()}")
    trains_nothing = nobody.trainer.model_copy(update={"steps": 0})
    async with scoring(redis, nobody.model_copy(update={"trainer": trains_nothing}), "starting"):
        await send(redis, rollout(0, 0, "2"), rollout(0, 1, "3"))
        await until(lambda: all_settled(redis))
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 0.0]]
    assert await events(redis) == []


async def test_what_the_teacher_says_is_stored_with_the_score_and_counted(redis: Redis) -> None:
    attempts = [rollout(0, 0, "2"), rollout(0, 1, "3")]
    with TeacherServer().serving(free_port()) as url:
        async with scoring(redis, settings(url)):
            await send(redis, *attempts)
            await until(lambda: all_settled(redis))
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 0.0]]
    for one, sent in zip(await stored(redis, 0), attempts, strict=True):
        assert one.teacher_logprobs is not None
        assert one.teacher_logprobs.tolist() == expected(sent).tolist()
    (whole, _) = (await group_join(redis).rollouts.of_groups([0]))[0]
    assert whole.teacher_logprobs is not None
    sizes = [len(payload) for payload in await redis.hvals(Keys(RUN).group(0))]
    assert (await counters(redis))["stored_bytes"] == sum(sizes) + 2 * 2 * BYTES_PER_TOKEN


async def test_an_outage_parks_the_work_and_loses_nothing(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "LONGEST_PAUSE_S", 0.05)
    server, port, groups = TeacherServer(), free_port(), range(2 * CONCURRENCY)
    attempts = [rollout(group, number) for group in groups for number in (0, 1)]
    async with contextlib.AsyncExitStack() as stack:
        with server.serving(port) as url:
            await stack.enter_async_context(scoring(redis, settings(url)))
        await send(redis, *attempts)

        async def is_out() -> bool:
            return "teacher_outage" in await events(redis)

        await until(is_out)
        await send(redis, rollout(900, 0), rollout(900, 1))
        assert await emitted(redis) == []
        assert await redis.xlen(Keys(RUN).stream(ROLLOUTS)) == len(attempts) + 2
        with server.serving(port):
            await until(lambda: all_settled(redis))
    assert sorted(group.group_id for group in await emitted(redis)) == [*groups, 900]
    assert await dead(redis) == []
    assert (await events(redis))[-1] == "teacher_recovered"
    for group in groups:
        for one, number in zip(await stored(redis, group), (0, 1), strict=True):
            assert one.teacher_logprobs is not None
            assert one.teacher_logprobs.tolist() == expected(rollout(group, number)).tolist()


async def test_an_attempt_that_the_teacher_never_answers_about_takes_its_group_to_the_dead_letters(
    redis: Redis,
) -> None:
    server = TeacherServer()
    server.status = lambda body: 400
    with server.serving(free_port()) as url:
        delivery = {"lease_s": 0.05, "max_deliveries": 2}
        async with scoring(redis, settings(url, delivery=delivery)):
            await send(redis, rollout(0, 0, size=1))
            await until(lambda: all_settled(redis))
    (letter,) = await dead(redis)
    assert "gave no log-probabilities: it answered 400" in letter.error
    assert (await counters(redis))["dropped:dead"] == 1


async def test_a_teacher_that_is_not_there_rejects_the_run_at_its_start_and_only_then(redis: Redis) -> None:
    run = settings(f"http://127.0.0.1:{free_port()}", deadline_s=0.3)
    with pytest.raises(RunRejected, match=r"the teacher at .* fails its health check, .* trainer.distillation.url"):
        await serve(serving(redis, run, asyncio.Event()))
    ready = asyncio.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(serve(serving(redis, run, ready, "running")), 0.5)
    assert not ready.is_set()
    assert await events(redis) == ["teacher_outage"]


async def test_a_teacher_of_another_vocabulary_rejects_the_run(redis: Redis, tmp_path: Path) -> None:
    tokenizer(tmp_path)
    server = TeacherServer()
    server.tokens = tokenizer(tmp_path / "other", first=1).encode(PROBE).ids
    with (
        server.serving(free_port()) as url,
        pytest.raises(RunRejected, match="has another vocabulary"),
    ):
        await serve(serving(redis, settings(url, str(tmp_path)), asyncio.Event()))
