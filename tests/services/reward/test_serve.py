"""The reward service for one run: what it refuses before the run, and how it lives through what breaks during it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from deploy import embedded_redis
from services.reward.serve import serve
from shared.deployment import Deployment
from shared.errors import PluginError, RunRejected
from shared.redis_connection import connect_checked
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs, State, present
from shared.service import Place, Serving
from tests.conftest import until
from tests.services.reward.reward_cases import LOG, RUN, all_settled, attempts, emitted, rollout, send, working


def settings(**reward: Any) -> RunSettings:
    tree = {"name": RUN, "model": {"path": "m"}, "data": {"datasets": [{"name": "sums"}]}, "trainer": {"steps": 1}}
    return RunSettings.model_validate({**tree, "reward": reward})


def serving(redis: Redis, run: RunSettings, ready: asyncio.Event, state: State = "starting") -> Serving:
    record = RunRecord(RUN, run, state, "", 0.0, None, None)
    return Serving(Place(Deployment(), redis, LOG, "worker"), record, ready.set)


def start(command: list[str], environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


async def test_an_unreachable_reward_service_rejects_the_run_with_one_sentence(redis: Redis) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    ready = asyncio.Event()
    with pytest.raises(RunRejected, match=r"fails its health check, GET http://127.0.0.1:\d+/health .* start it or"):
        await serve(serving(redis, settings(type="remote", url=url, deadline_s=0.6), ready))
    assert not ready.is_set()


async def test_a_worker_that_starts_during_an_outage_waits_and_leaves_the_run_alive(redis: Redis) -> None:
    url, ready = f"http://127.0.0.1:{free_port()}/", asyncio.Event()
    run = settings(type="remote", url=url, deadline_s=0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(serve(serving(redis, run, ready, state="running")), 1.2)
    assert not ready.is_set()


async def test_a_filter_that_does_not_exist_rejects_the_run(redis: Redis) -> None:
    with pytest.raises(PluginError, match="no_such_module does not import"):
        await serve(serving(redis, settings(group_filter="no_such_module:keep"), asyncio.Event()))


@pytest.mark.parametrize("kind", ["exact_match", "contains", "math"])
async def test_each_built_in_reward_serves_a_run(redis: Redis, kind: str) -> None:
    ready = asyncio.Event()
    task = asyncio.create_task(serve(serving(redis, settings(type=kind), ready)))
    await asyncio.wait_for(ready.wait(), 30)
    await send(redis, rollout(0, 0, "2"), rollout(0, 1, "3"))
    await until(lambda: all_settled(redis))
    task.cancel()
    await asyncio.wait({task})
    assert [group.rewards for group in await emitted(redis)] == [[1.0, 0.0]]


async def test_the_program_serves_the_active_run_and_stops_on_sigterm(redis: Redis, redis_url: str) -> None:
    runs = Runs(redis)
    await runs.create(settings(type="exact_match"))
    await runs.activate_next()
    overrides = {"SLUICE_REDIS__URL": redis_url, "SLUICE_HEALTH__REWARD_PORT": str(free_port())}
    program = start([sys.executable, "-m", "services.reward"], {**os.environ, **overrides})

    async def is_ready() -> bool:
        return bool(await present(redis, RUN, "reward"))

    await until(is_ready, deadline_s=30)
    await send(redis, rollout(0, 0), rollout(0, 1))
    await until(lambda: all_settled(redis))
    program.send_signal(signal.SIGTERM)
    assert program.wait(10) == 0
    assert len(await emitted(redis)) == 1
    assert not await is_ready()


async def test_a_redis_that_is_killed_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    command, url = embedded_redis.command(tmp_path, port, fsync="always"), embedded_redis.url(tmp_path, port)
    server = start(command)
    try:
        redis, sender = await connect_checked(url, 10), await connect_checked(url, 10)
        async with working(attempts(redis)):
            await send(sender, *(rollout(group, attempt) for group in range(150) for attempt in (0, 1)))

            async def some_are_emitted() -> bool:
                return bool(await emitted(sender))

            await until(some_are_emitted)
            server.kill()
            server.wait(10)
            server = start(command)
            await (await connect_checked(url, 10)).aclose()
            await send(sender, *(rollout(group, attempt) for group in range(150, 200) for attempt in (0, 1)))
            await until(lambda: all_settled(sender), deadline_s=20)
        assert sorted(group.group_id for group in await emitted(sender)) == list(range(200))
        await redis.aclose()
        await sender.aclose()
    finally:
        server.kill()
        server.wait(10)
