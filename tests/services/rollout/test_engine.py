"""The sidecar with real SGLang, a real router and the trainer's own publisher: weights come, requests never fail."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from services.rollout.launch_engine import check_port
from services.trainer.lend_version import Lender
from services.trainer.publish_weights import WeightPublisher
from services.trainer.serve_run import _open_publisher
from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import TinyShape, write_tiny_model
from shared.enrolment import AT_WORK, read_parts
from shared.logs import Log
from shared.messages import Event
from shared.runs import Runs, present
from shared.streams import Stream
from shared.topology import EVENTS, Keys
from tests.conftest import until
from tests.services.rollout.published_policy import DEADLINES, START_S, policy_from, publish_under_load
from tests.services.rollout.real_engine import RealEngine, descendants, named
from tests.services.trainer.recorded_groups import serving

LONG = 1800
"""Tokens of a request that is under way for seconds."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def real(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    home = tmp_path_factory.mktemp("home")
    model = tmp_path_factory.mktemp("model")
    write_tiny_model(model, seed=0, shape=TinyShape(), tie_embeddings=False)
    made = RealEngine(redis_url.removesuffix("/0") + "/7", home, model)
    made.start_router()
    asyncio.run(_flush_and_activate(made))
    made.start_sidecar()
    yield made
    made.close()


async def _flush_and_activate(real: RealEngine) -> None:
    redis = real.connect()
    await redis.flushdb()
    await redis.aclose()
    await real.activate()


@pytest.fixture
async def client(real: RealEngine) -> AsyncIterator[Redis]:
    redis = real.connect()
    yield redis
    await redis.aclose()


async def test_versions_reach_the_engine_with_requests_in_flight_and_every_span_is_right(
    real: RealEngine, client: Redis
) -> None:
    async with policy_from(client, real, 0) as policy:
        first = await policy.publish()
        assert (len(first.done), first.failed, first.unverified) == (1, {}, ())
        await until(lambda: _is_listed(real, 0), 60)
        await until(lambda: _is_ready(client, real), 60)
        for version in range(1, 5):
            await publish_under_load(policy, real, version)


async def test_a_router_that_was_restarted_lists_the_engine_again(real: RealEngine) -> None:
    router = real.processes[0]
    router.terminate()
    await asyncio.to_thread(router.wait, 20)
    real.processes[0] = real.start_router()
    real.processes.pop()
    await until(lambda: _is_listed(real, 0), 30)
    assert (await real.generate([5], 2))["meta_info"]["weight_version"] == "4"


async def test_an_engine_of_somebody_else_gets_each_version_before_requests_also_after_a_restart_and_is_left_alone(
    real: RealEngine, client: Redis
) -> None:
    theirs = real.start_their_server(1)
    try:
        async with policy_from(client, real, 5) as policy:
            await policy.publish()
            sidecar = real.start_sidecar(1, [theirs.plan.url])
            await until(lambda: _is_listed(real, 1), START_S)
            assert await _version_of(theirs.plan.url) == "5"
            assert len((await policy.publish()).done) == 2
            theirs.stop(grace_s=0)
            await until(lambda: _is_not_listed(real, 1), 10)
            theirs = real.start_their_server(1)
            await until(lambda: _is_listed(real, 1), START_S)
            assert await _version_of(theirs.plan.url) == "6"
            sidecar.terminate()
            assert await asyncio.to_thread(sidecar.wait, 15) == 0
            assert await _version_of(theirs.plan.url) == "6"
            assert await real.listed() == [real.engine_url(0)]
    finally:
        theirs.stop(grace_s=0)


async def test_an_engine_killed_during_an_update_delays_nobody_and_comes_back_with_the_newest_version(
    real: RealEngine, client: Redis
) -> None:
    async with policy_from(client, real, 7) as policy:
        await policy.publish()
        processes = descendants(real.processes[1])
        named(processes, "scheduler").send_signal(signal.SIGSTOP)
        publishing = asyncio.create_task(policy.publish())
        await until(lambda: _was_told_to_go(client, real, 8), 10)
        started = time.monotonic()
        os.killpg(named(processes, "engine_server").pid, signal.SIGKILL)
        report = await publishing
        assert time.monotonic() - started < 10
        assert len(report.failed) == 1
        assert await real.listed() == []
        await until(lambda: _is_listed(real, 0), START_S)
        assert (await real.generate([5], 2))["meta_info"]["weight_version"] == "8"
        events = [event for _, event in await Stream[Event](client, real.run, EVENTS).read()]
        assert {"engine_died", "weights_failed"} <= {event.event for event in events}


async def test_a_trainer_that_dies_as_it_sends_leaves_an_engine_that_goes_on_with_the_version_that_it_has(
    real: RealEngine, client: Redis
) -> None:
    started = asyncio.Event()
    request = asyncio.create_task(real.generate_streaming([9, 10, 20], LONG, started))
    real.start_trainer(9, signal.SIGKILL)
    async with asyncio.timeout(20):
        await started.wait()
    await until(lambda: _has_failed_to_take(client, real, 9), 30)
    assert {span["version"] for span in (await request)["meta_info"]["weight_versions"]} == {"8"}
    server = named(descendants(real.processes[1]), "engine_server").pid
    async with policy_from(client, real, 10) as policy:
        assert len((await policy.publish()).done) == 1
    assert named(descendants(real.processes[1]), "engine_server").pid == server


async def test_a_trainer_that_hangs_as_it_sends_costs_the_engine_its_process_and_no_more_than_the_deadline(
    real: RealEngine, client: Redis
) -> None:
    server = named(descendants(real.processes[1]), "engine_server").pid
    trainer = real.start_trainer(11, signal.SIGSTOP)
    await until(lambda: _has_failed_to_take(client, real, 11), 30)
    async with policy_from(client, real, 12) as policy:
        await policy.publish()
        await until(lambda: _is_listed(real, 0), START_S)
        assert await _version_of(real.engine_url(0)) == "12"
    assert named(descendants(real.processes[1]), "engine_server").pid != server
    trainer.kill()


async def test_the_next_run_with_the_same_settings_keeps_the_process_and_gets_its_own_weights(
    real: RealEngine, client: Redis
) -> None:
    server = named(descendants(real.processes[1]), "engine_server").pid
    assert await Runs(client).move(real.run, ("starting",), "finished")
    await until(lambda: _is_not_listed(real, 0), 20)
    real.run = "r3"
    await real.activate()
    async with policy_from(client, real, 0) as policy:
        report = await policy.publish()
        assert (len(report.done), report.unverified) == (1, ())
        await until(lambda: _is_listed(real, 0), 60)
        assert named(descendants(real.processes[1]), "engine_server").pid == server
        assert (await real.generate([5], 2))["meta_info"]["weight_version"] == "0"


@pytest.mark.parametrize("transport", ["disk", "delta"])
async def test_versions_in_files_reach_the_engine_with_requests_in_flight_and_every_span_is_right(
    real: RealEngine, client: Redis, transport: str
) -> None:
    assert await Runs(client).move(real.run, ("starting",), "finished")
    await until(lambda: _is_not_listed(real, 0), 20)
    real.run = f"by-{transport}"
    record = await real.activate(transport)
    publisher = _open_publisher(serving(client, record, real.home), StepLedger(client, real.run))
    async with policy_from(client, real, 0, publisher) as policy:
        await policy.publish()
        await until(lambda: _is_listed(real, 0), 60)
        for version in (1, 2):
            await publish_under_load(policy, real, version)
    kinds = [folder.name.split("-")[1] for folder in sorted((real.home / "runs" / real.run / "weights").iterdir())]
    assert kinds == (["full", "full"] if transport == "disk" else ["full", "delta", "delta"])


async def test_versions_out_of_memory_that_the_trainer_lends_are_as_good_as_those_that_it_sends(
    real: RealEngine, client: Redis
) -> None:
    async with policy_from(client, real, 0) as sent:
        await sent.publish()
    ledger = StepLedger(client, real.run)
    lent = WeightPublisher(ledger, "127.0.0.1", Log("trainer"), 1, deadlines=DEADLINES, transport=Lender(ledger, 10, 0))
    async with policy_from(client, real, 0, lent) as policy:
        await policy.publish()
        for version in (1, 2):
            await publish_under_load(policy, real, version)


async def test_stopping_the_sidecar_leaves_no_process_and_no_port(real: RealEngine) -> None:
    sidecar = real.processes[1]
    await until(lambda: _has_server(sidecar), 20)
    processes = descendants(sidecar)
    started = time.monotonic()
    sidecar.terminate()
    assert await asyncio.to_thread(sidecar.wait, 20) == 0
    assert time.monotonic() - started < 12
    assert not [process for process in processes if process.is_running()]
    assert await real.listed() == []
    for port in (real.engine_port, real.health_port):
        check_port("127.0.0.1", port)


async def test_a_sidecar_that_is_killed_takes_its_engine_along(real: RealEngine) -> None:
    sidecar = real.start_sidecar()
    await until(lambda: _has_server(sidecar), 20)
    processes = descendants(sidecar)
    sidecar.kill()
    await asyncio.to_thread(sidecar.wait, 10)
    await asyncio.to_thread(psutil.wait_procs, processes, 10)
    assert not [process for process in processes if process.is_running() and process.status() != "zombie"]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"server_args": {"max_running_request": 3}}, "did you mean max_running_requests"),
        ({"server_args": {"attention_backend": "no_such_backend"}}, "ends with:"),
    ],
)
async def test_wrong_engine_settings_fail_the_run_with_a_sentence(
    redis_url: str, tmp_path: Path, real: RealEngine, engine: dict[str, Any], reason: str
) -> None:
    assert reason in await _reason_of_failure(redis_url, tmp_path, real.model, **engine)


async def test_a_port_in_use_fails_the_run_and_is_named(redis_url: str, tmp_path: Path, real: RealEngine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in await _reason_of_failure(redis_url, tmp_path, real.model, port=port)


async def _reason_of_failure(redis_url: str, home: Path, model: Path, port: int = 0, **engine: Any) -> str:
    other = RealEngine(redis_url.removesuffix("/0") + "/8", home, model, "r2", engine_port=port or free_port())
    redis = other.connect()
    await redis.flushdb()
    await other.activate(**engine)
    sidecar = other.start_sidecar()
    try:
        await until(lambda: _has_failed(redis, other.run), 150)
        record = await Runs(redis).get(other.run)
        assert record is not None
        return record.reason
    finally:
        other.close()
        await redis.aclose()
        assert sidecar.returncode == 0


async def _is_listed(real: RealEngine, index: int) -> bool:
    return real.engine_url(index) in await real.listed()


async def _version_of(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{url}/model_info")).json()["weight_version"]


async def _has_failed_to_take(redis: Redis, real: RealEngine, version: int) -> bool:
    parts = await read_parts(redis, Keys(real.run), version)
    return any(part.state == "failed" for part in parts.values())


async def _is_not_listed(real: RealEngine, index: int) -> bool:
    return real.engine_url(index) not in await real.listed()


async def _is_ready(redis: Redis, real: RealEngine) -> bool:
    return bool(await present(redis, real.run, "engine"))


async def _was_told_to_go(redis: Redis, real: RealEngine, version: int) -> bool:
    parts = await read_parts(redis, Keys(real.run), version)
    return any(part.state in AT_WORK for part in parts.values())


async def _has_server(sidecar: subprocess.Popen[bytes]) -> bool:
    return any("engine_server" in " ".join(process.cmdline()) for process in descendants(sidecar))


async def _has_failed(redis: Redis, run: str) -> bool:
    record = await Runs(redis).get(run)
    return record is not None and record.state == "failed"
