"""The worker process and its preparation: a killed worker's groups go to another one; a run it cannot serve fails."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import Counter

import pytest

from benchmarks.free_ports import free_port
from services.rollout.worker import serve
from services.trainer.tiny_model import write_tiny_model
from shared.deployment import Deployment
from shared.messages import Attempt, Prompt
from shared.run_settings import RunSettings
from shared.runs import Runs, present
from shared.service import Place, follow_runs
from shared.streams import Stream
from shared.tasks import end
from shared.topology import PROMPTS, ROLLOUTS, Keys
from tests.conftest import until
from tests.services.rollout.fake_router import hello

RUN = "r1"


async def start_run(redis, model, **rollout):
    settings = {
        "name": RUN,
        "model": {"path": str(model)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": 4, "concurrency": 4, **rollout},
        "trainer": {"steps": 1},
        "delivery": {"lease_s": 1},
    }
    await Runs(redis).create(RunSettings.model_validate(settings))
    await Runs(redis).activate_next()


@contextlib.asynccontextmanager
async def worker_process(redis_url, router_url):
    """A worker as a process of its own; killed at the end unless it has ended."""
    environment = {
        **os.environ,
        "SLUICE_REDIS__URL": redis_url,
        "SLUICE_ROUTER__URL": router_url,
        "SLUICE_HEALTH__ROLLOUT_PORT": str(free_port()),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.rollout", env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_groups_of_a_killed_worker_are_generated_by_another_and_each_attempt_counts_once(
    redis, redis_url, router, tmp_path
):
    write_tiny_model(tmp_path, seed=0)
    held = asyncio.Event()

    async def respond(body):
        if len(router.requests) > 8:
            await held.wait()
        return await hello(body)

    router.respond = respond
    await start_run(redis, tmp_path)
    prompts: Stream[Prompt] = Stream(redis, RUN, PROMPTS)
    await prompts.publish(*(Prompt(n, "train", "sums", n, f"{n}+1=", 4) for n in range(24)))
    async with worker_process(redis_url, router.url) as first, worker_process(redis_url, router.url) as second:

        async def both_hold_groups():
            pending = await redis.xpending(prompts.key, "rollout")
            return len(pending["consumers"]) == 2 and router.now == 8

        await until(lambda: _workers(redis, 2), 60)
        await until(both_hold_groups, 30)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        held.set()
        await until(lambda: _is_spent(redis), 30)
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0
    made = Counter((r.group_id, r.attempt) for _, r in await Stream[Attempt](redis, RUN, ROLLOUTS).read(count=1000))
    assert sorted(made) == [(n, attempt) for n in range(24) for attempt in range(4)]
    assert set(made.values()) == {1}


async def test_a_worker_that_is_told_to_stop_finishes_its_groups_and_takes_no_more(redis, redis_url, router, tmp_path):
    write_tiny_model(tmp_path, seed=0)
    held = asyncio.Event()

    async def respond(body):
        await held.wait()
        return await hello(body)

    router.respond = respond
    await start_run(redis, tmp_path)
    await Stream[Prompt](redis, RUN, PROMPTS).publish(*(Prompt(n, "train", "sums", n, "1+1=", 4) for n in range(6)))

    async def is_full():
        return router.now == 4

    async with worker_process(redis_url, router.url) as worker:
        await until(is_full, 60)
        worker.send_signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(1, held.set)
        assert await worker.wait() == 0
    made = [r.group_id for _, r in await Stream[Attempt](redis, RUN, ROLLOUTS).read()]
    assert sorted(set(made)) == [0, 1, 2, 3]
    assert await redis.xlen(Keys(RUN).stream(PROMPTS)) == 2
    assert await present(redis, RUN, "rollout") == []


@pytest.mark.parametrize(
    ("model", "rollout", "says"),
    [
        ("nowhere", {}, "rollout: model.path .*nowhere is not a folder here.*hf download"),
        ("model", {"generate": "no_such_module:generate"}, "rollout: no_such_module:generate: module no_such_module"),
    ],
)
async def test_a_run_that_cannot_be_generated_fails_with_one_sentence(redis, log, tmp_path, model, rollout, says):
    write_tiny_model(tmp_path / "model", seed=0)
    await start_run(redis, tmp_path / model, **rollout)
    following = asyncio.create_task(follow_runs(Place(Deployment(), redis, log, "w"), "rollout", serve, ("rl", "sft")))
    try:

        async def failed():
            return (await Runs(redis).get(RUN)).state == "failed"

        await until(failed)
    finally:
        await end(following)
    record = await Runs(redis).get(RUN)
    assert re.match(says, record.reason)
    assert "\n" not in record.reason


async def _workers(redis, count):
    return len(await present(redis, RUN, "rollout")) == count


async def _is_spent(redis):
    return await redis.xlen(Keys(RUN).stream(PROMPTS)) == 0
