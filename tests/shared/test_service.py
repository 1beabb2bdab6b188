"""Following the active run: ready, ended, rejected, next."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from shared.deployment import Deployment
from shared.errors import RunRejected, SluiceError
from shared.health import serve_health
from shared.logs import Log
from shared.run_settings import RunSettings
from shared.runs import Runs, present
from shared.service import MAX_FAILURES, Place, Serving, follow_runs
from shared.settings import validate
from shared.tasks import end
from tests.conftest import until


def settings(name: str, kind: str = "rl") -> RunSettings:
    tree = {"name": name, "kind": kind, "model": {"path": "m"}, "data": {"datasets": [{"name": "d"}]}}
    return validate(RunSettings, {**tree, "trainer": {"steps": 1}}, "run.toml")


Follow = Callable[[Callable[[Serving], Awaitable[None]]], None]


@pytest.fixture
async def follow(redis: Redis) -> AsyncIterator[Follow]:
    tasks: list[asyncio.Task[None]] = []
    place = Place(Deployment(), redis, Log("test"), "w1")
    logging.getLogger("sluice.test").setLevel(logging.CRITICAL)

    def start(serve: Callable[[Serving], Awaitable[None]]) -> None:
        tasks.append(asyncio.create_task(follow_runs(place, "rollout", serve, ("rl",))))

    yield start
    await end(*tasks)


async def test_a_service_is_present_from_ready_until_the_run_ends_and_then_takes_the_next(
    redis: Redis, follow: Follow
) -> None:
    served: list[str] = []

    async def serve(serving: Serving) -> None:
        served.append(serving.run)
        serving.ready()
        await asyncio.Event().wait()

    runs = Runs(redis)
    for name, kind in (("a", "rl"), ("left-alone", "sft"), ("b", "rl")):
        await runs.create(settings(name, kind))
    follow(serve)
    for name in ("a", "b"):
        await runs.activate_next()

        async def is_present(name: str = name) -> bool:
            return await present(redis, name) == ["rollout/w1"]

        async def is_gone(name: str = name) -> bool:
            return not await present(redis, name)

        await until(is_present)
        await runs.fail(name, "ended by the test")
        await until(is_gone)
        if name == "a":
            await runs.activate_next()
            await runs.fail("left-alone", "ended by the test")
    assert served == ["a", "b"]


async def test_a_rejected_run_fails_with_one_sentence_that_names_the_role(redis: Redis, follow: Follow) -> None:
    async def serve(serving: Serving) -> None:
        raise RunRejected("no model at m; correct model.path")

    runs = Runs(redis)
    await runs.create(settings("a"))
    await runs.activate_next()
    follow(serve)

    async def has_failed() -> bool:
        record = await runs.get("a")
        return record is not None and record.state == "failed"

    await until(has_failed)
    record = await runs.get("a")
    assert record is not None
    assert record.reason == "rollout: no model at m; correct model.path"


async def test_the_health_endpoint_answers_and_a_taken_port_is_named() -> None:
    port = free_port()
    async with serve_health("127.0.0.1", port), httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/healthz")).json() == {"status": "ok"}
        assert (await client.get(f"http://127.0.0.1:{port}/other")).status_code == 404
        with pytest.raises(SluiceError, match=f"port {port} on 127.0.0.1 is in use"):
            async with serve_health("127.0.0.1", port):
                pass


async def test_a_role_that_fails_in_one_process_after_the_other_fails_the_run_in_the_end(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(serving: Serving) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(logging.getLogger("sluice.test"), "level", logging.CRITICAL)
    runs = Runs(redis)
    await runs.create(settings("a"))
    await runs.activate_next()
    place = Place(Deployment(), redis, Log("test"), "w1")
    for process in range(1, MAX_FAILURES + 1):
        with pytest.raises(OSError, match="no space left"):
            await follow_runs(place, "trainer", serve, ("rl",))
        record = await runs.get("a")
        assert record is not None
        assert (record.state == "failed") == (process == MAX_FAILURES)
    assert record.reason == f"trainer: failed {MAX_FAILURES} times, at last with OSError: no space left on device"
