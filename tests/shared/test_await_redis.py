"""Redis is killed and comes back: whoever worked goes on, and nothing is lost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from services.reward.serve import serve as serve_reward
from shared.await_redis import AwaitRedis
from shared.deployment import Deployment
from shared.errors import SluiceError
from shared.logs import Log
from shared.messages import Prompt
from shared.redis_connection import connect, connect_checked
from shared.run_settings import RunSettings
from shared.runs import Runs, present
from shared.scripts import Ledger
from shared.service import Place, Serving, follow_runs
from shared.settings import validate
from shared.streams import Delivery, Stream
from shared.tasks import end
from shared.topology import PROMPTS, Keys
from tests.conftest import until
from tests.services.reward.reward_cases import emitted, rollout, send
from tests.shared.own_redis import OwnRedis

RUN = "r1"


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    server = OwnRedis(tmp_path, free_port(), "always")
    yield server
    server.kill()


def settings() -> RunSettings:
    tree = {"name": RUN, "model": {"path": "m"}, "data": {"datasets": [{"name": "d"}]}, "trainer": {"steps": 1}}
    return validate(RunSettings, {**tree, "rollout": {"group_size": 2}}, "run.toml")


async def pass_prompts_on(serving: Serving) -> None:
    """The plainest rollout worker: a prompt in, its attempts out."""
    prompts: Stream[Prompt] = Stream(serving.redis, RUN, PROMPTS, serving.place.name, Delivery(0.5))
    ledger = Ledger(serving.redis, Keys(RUN))
    await_redis = serving.await_redis()
    await await_redis(prompts.open)
    keeper = asyncio.create_task(prompts.keep_leases())
    serving.ready()
    try:
        while True:
            for message in await await_redis(lambda: prompts.receive(10, 1.0)):
                made = [rollout(message.body.group_id, attempt) for attempt in (0, 1)]
                await await_redis(lambda message=message, made=made: ledger.forward(message, made))
    finally:
        await end(keeper)


@pytest.mark.parametrize("outage_s", [1.5, pytest.param(20, marks=pytest.mark.slow)])
async def test_services_wait_out_an_outage_of_redis_and_go_on(own_redis: OwnRedis, outage_s: float) -> None:
    logging.getLogger("sluice.test").setLevel(logging.CRITICAL)
    client = await own_redis.start()
    runs = Runs(client)
    await runs.create(settings())
    await runs.activate_next()
    tasks: list[asyncio.Task[None]] = []
    places = [Place(Deployment(), await connect_checked(own_redis.url, 10), Log("test"), name) for name in ("a", "b")]
    for place, role, serve in zip(places, ("reward", "rollout"), (serve_reward, pass_prompts_on), strict=True):
        tasks.append(asyncio.create_task(follow_runs(place, role, serve, ("rl",))))
    prompts: Stream[Prompt] = Stream(client, RUN, PROMPTS)

    async def are_there() -> bool:
        return len(await present(client, RUN)) == 2

    async def all_done() -> bool:
        return sorted(group.group_id for group in await emitted(client)) == [0, 1, 2, 3, 10, 11]

    try:
        await until(are_there)
        await prompts.publish(*(Prompt(i, "train", "d", i, "1+1=", 2) for i in (0, 1)))
        await send(client, rollout(10, 0), rollout(10, 1), rollout(11, 0))
        own_redis.kill()
        done, _ = await asyncio.wait(tasks, timeout=outage_s)
        assert not done, "no service exits"
        await (await own_redis.start()).aclose()
        await prompts.publish(*(Prompt(i, "train", "d", i, "1+1=", 2) for i in (2, 3)))
        await send(client, rollout(11, 1))
        await until(all_done, 60)
        assert not any(task.done() for task in tasks)
    finally:
        await end(*tasks)
        for place in places:
            await place.redis.aclose()
        await client.aclose()


async def test_an_outage_that_does_not_end_is_reported_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    redis = connect("redis://127.0.0.1:9/0")
    redis.connection_pool.connection_kwargs.pop("retry")
    with pytest.raises(SluiceError, match=r"start it, give it memory and disk, or raise redis\.outage_deadline_s"):
        await AwaitRedis(Log("patience"), RUN, deadline_s=0.6)(redis.ping)
    assert [record.message for record in caplog.records] == ["redis_unreachable"]
    await redis.aclose()


async def test_calls_wait_while_redis_is_full(own_redis: OwnRedis) -> None:
    client = await own_redis.start()
    await client.config_set("maxmemory", "1")
    call = asyncio.create_task(AwaitRedis(Log("test"), RUN)(lambda: client.set(Keys(RUN).counters, "1")))
    done, _ = await asyncio.wait([call], timeout=0.3)
    assert not done
    await client.config_set("maxmemory", "0")
    assert await asyncio.wait_for(call, 5)
    await client.aclose()
