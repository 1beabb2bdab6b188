"""Long attempts on a real SGLang behind a real router: killed workers, weight updates, draining, exact to the token."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from benchmarks.free_ports import free_port
from services.rollout.engine_calls import EngineCalls
from services.rollout.generate_group import GroupGenerator
from services.rollout.model_tokenizer import load_tokenizer
from services.rollout.partial_attempt import read_chunks
from services.rollout.partial_group import CODEC, Partials
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from shared.await_redis import AwaitRedis
from shared.messages import Prompt, Rollout, expand
from shared.rollout_parts import join_parts
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import PROMPTS, ROLLOUTS, Keys
from tests.conftest import until
from tests.services.rollout.real_engine import ROUTER
from tests.services.rollout.test_generate_on_sglang import recomputed

pytestmark = pytest.mark.slow

RUN, KEYS = "r1", Keys("r1")
LONG, CHUNK = 900, 64
MANY = 12
"""Attempts of which some still grow after two or three chunks; each ends by chance, at any token."""
TEXT = "What is 12 + 30?"


@pytest.fixture(scope="module")
def router(engine):
    port = free_port()
    command = [*ROUTER, "--port", str(port), "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    process = subprocess.Popen([*command, "--worker-urls", engine], stdout=subprocess.DEVNULL)
    try:
        asyncio.run(until(lambda: _lists(f"http://127.0.0.1:{port}"), 60))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


async def _lists(url):
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return any(w["is_healthy"] for w in (await http.get(f"{url}/workers")).json()["workers"])
        except httpx.HTTPError:
            return False


@pytest.fixture
async def control(engine):
    """The engine's own HTTP, and its version set to 3."""
    async with httpx.AsyncClient(base_url=engine, trust_env=False, timeout=120) as client:
        await set_version(client, 3)
        yield client


async def set_version(control, version):
    body = {"new_version": str(version), "abort_all_requests": False}
    (await control.post("/update_weight_version", json=body)).raise_for_status()


@pytest.fixture
async def worker(redis, log, router, model):
    tokenizer = load_tokenizer(model, False, False)
    async with RouterConnections(router, 120) as connections:

        def make(name):
            partials = Partials(Ledger(redis, KEYS), log, name, CHUNK, 60, 60, AwaitRedis(log, KEYS.run))
            return GroupGenerator(tokenizer, Sampler(connections, log), None, name, partials)

        yield make


def prompt(group_size=4, group_id=7) -> Prompt:
    sampling = {"max_new_tokens": LONG, "temperature": 0.8}
    return Prompt(group_id, "train", "sums", 1, TEXT, group_size, sampling=sampling)


async def stored(redis, group_id=7) -> dict[int, list[int]]:
    """The tokens of each attempt that are in Redis."""
    entries = await redis.xrange(KEYS.partial(group_id))
    record = read_chunks(CODEC.decode(fields[b"m"]) for _, fields in entries)
    return {attempt: [t for s in segments for t in s.token_ids] for attempt, segments in record.items()}


def has_stored(redis, tokens):
    async def check():
        return any(len(ids) >= tokens for ids in (await stored(redis)).values())

    return check


def check(model, rollout: Rollout):
    count = len(rollout.token_ids)
    assert rollout.finish_reason == "stop" or count == LONG
    assert len(expand(rollout.weight_versions)) == len(rollout.logprobs) == count
    assert recomputed(model, rollout, 0.8) == pytest.approx(rollout.logprobs, abs=1e-4)


@pytest.mark.parametrize("mode", ["retract", "abort"])
async def test_an_update_in_the_middle_and_then_another_worker_leave_every_token_with_its_version(
    redis, control, worker, model, mode
):
    """Version 3 becomes 4 while the first worker has the group, and 5 before the second one takes it over."""
    first = asyncio.create_task(worker("first").generate(prompt(MANY)))
    await until(has_stored(redis, CHUNK), 60)
    (await control.post("/pause_generation", json={"mode": mode})).raise_for_status()
    await set_version(control, 4)
    (await control.post("/continue_generation", json={})).raise_for_status()
    await until(has_stored(redis, 3 * CHUNK), 60)
    await end(first)
    before = await stored(redis)
    await set_version(control, 5)
    rollouts = await worker("second").generate(prompt(MANY))
    for rollout in rollouts:
        check(model, rollout)
        kept = before.get(rollout.attempt, [])
        assert rollout.token_ids.tolist()[: len(kept)] == kept
        versions = [version for version, _ in rollout.weight_versions]
        assert versions == sorted(versions)
        if len(rollout.token_ids) > len(kept):
            assert versions == [3, 4, 5]
            assert expand(rollout.weight_versions)[len(kept) - 1 : len(kept) + 1].tolist() == [4, 5]


async def test_a_request_that_nobody_waits_for_any_more_is_ended_by_the_engine(redis, control, worker):
    task = asyncio.create_task(worker("first").generate(prompt()))
    await until(has_stored(redis, CHUNK), 60)
    await end(task)
    started = time.monotonic()
    calls = EngineCalls(str(control.base_url))
    assert await calls.wait_until_idle(30)
    assert time.monotonic() - started < 5
    await calls.close()


async def test_a_drain_waits_for_what_runs_and_lets_what_comes_wait(redis, control, worker, engine):
    running = asyncio.create_task(worker("first").generate(prompt(MANY, 7)))
    await until(has_stored(redis, CHUNK), 60)
    calls = EngineCalls(engine)
    assert not await calls.wait_until_idle(0.2)
    draining = asyncio.create_task(calls.wait_until_idle(120))
    await asyncio.sleep(0.1)
    late = asyncio.create_task(worker("late").generate(prompt(1, 8)))
    assert await draining
    assert not late.done()
    for done in await asyncio.wait_for(running, 5):
        assert done.weight_versions == [(3, len(done.token_ids))]
    await late
    await calls.close()


async def test_a_worker_process_is_killed_and_another_continues_its_attempts(
    redis, redis_url, control, router, model, tmp_path
):
    await start_run(redis, model)
    await Stream[Prompt](redis, RUN, PROMPTS).publish(prompt(MANY))
    first = start_worker(redis_url, router, tmp_path / "first.log")
    try:
        await until(has_stored(redis, 2 * CHUNK), 90)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = await stored(redis)
        second = start_worker(redis_url, router, tmp_path / "second.log")
        try:
            await until(lambda: _is_spent(redis), 120)
        finally:
            second.terminate()
            assert second.wait(20) == 0
    finally:
        first.kill()
    rollouts = await forwarded(redis)
    assert [rollout.attempt for rollout in rollouts] == list(range(MANY))
    for rollout in rollouts:
        check(model, rollout)
        kept = len(before[rollout.attempt])
        assert kept == len(rollout.token_ids) or kept >= CHUNK
        assert rollout.token_ids.tolist()[: len(before[rollout.attempt])] == before[rollout.attempt]
    assert not await redis.exists(KEYS.partial(7), KEYS.partial_owner(7))
    resumed = json.loads(next(line for line in (tmp_path / "second.log").read_text().splitlines() if "resumed" in line))
    assert resumed["tokens"] == sum(len(tokens) for tokens in before.values())


async def forwarded(redis) -> list[Rollout]:
    """The attempts on the stream, each with its arrays."""
    entries = [fields for _, fields in await redis.xrange(KEYS.stream(ROLLOUTS))]
    arrays = await redis.hgetall(KEYS.arrays(7))
    assert {fields[b"f"] for fields in entries} == {arrays.pop(b"of")}
    assert len(arrays) == len(entries)
    return [join_parts(fields[b"m"], arrays[b"%d" % number]) for number, fields in enumerate(entries)]


async def start_run(redis, model):
    sampling = {"max_new_tokens": LONG, "temperature": 0.8}
    settings = {
        "name": RUN,
        "model": {"path": str(model)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": MANY, "partial_tokens": CHUNK, "sampling": sampling},
        "trainer": {"steps": 1},
        "delivery": {"lease_s": 1},
    }
    await Runs(redis).create(RunSettings.model_validate(settings))
    await Runs(redis).activate_next()


def start_worker(redis_url, router_url, log) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "SLUICE_REDIS__URL": redis_url,
        "SLUICE_ROUTER__URL": router_url,
        "SLUICE_HEALTH__ROLLOUT_PORT": str(free_port()),
        "SLUICE_LOG__FORMAT": "json",
    }
    with log.open("wb") as file:
        command = [sys.executable, "-m", "services.rollout"]
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


async def _is_spent(redis):
    return await redis.xlen(KEYS.stream(PROMPTS)) == 0 and await redis.xlen(KEYS.stream(ROLLOUTS)) == MANY
