"""The example reward server, for real: it scores through the product's client and worker, and may die in the middle."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from services.reward.serve import serve
from shared.deployment import Deployment
from shared.logs import Log
from shared.messages import Event
from shared.run_settings import RunSettings
from shared.runs import RunRecord
from shared.service import Place, Serving
from shared.streams import Stream
from shared.topology import EVENTS, ROLLOUTS, Keys
from tests.conftest import until
from tests.services.reward.reward_cases import RUN, all_settled, counters, dead, emitted, rollout, send, stored

FOLDER = Path(__file__).parents[3] / "examples" / "remote_reward"
GROUPS = 100


def start_server(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port), "--log-level", "warning"]
    return subprocess.Popen(command, cwd=FOLDER)


def serving(redis: Redis, port: int, ready: asyncio.Event) -> Serving:
    tree: dict[str, Any] = {"name": RUN, "model": {"path": "m"}, "trainer": {"steps": 1}}
    reward = {"type": "remote", "url": f"http://127.0.0.1:{port}", "batch_size": 16}
    data = {"datasets": [{"name": "sums"}]}
    # two deliveries are enough: an outage uses up none
    delivery = {"lease_s": 1, "max_deliveries": 2}
    run = RunSettings.model_validate({**tree, "data": data, "reward": reward, "delivery": delivery})
    record = RunRecord(RUN, run, "starting", "", 0.0, None, None)
    return Serving(Place(Deployment(), redis, Log("reward"), "worker"), record, ready.set)


async def events_named(redis: Redis, name: str) -> int:
    events: Stream[Event] = Stream(redis, RUN, EVENTS)
    return sum(event.event == name for _, event in await events.read(count=1000))


def lease_renewals(redis: Redis, wanted: int) -> Callable[[], Awaitable[bool]]:
    """A condition: the oldest pending entry was seen to start a new lease this many times."""
    key, group = Keys(RUN).stream(ROLLOUTS), ROLLOUTS.group or ""
    seen = {"idle": 0, "renewals": 0}

    async def renewed() -> bool:
        (oldest,) = await redis.xpending_range(key, group, "-", "+", 1)
        idle = int(oldest["time_since_delivered"])
        seen["renewals"] += idle < seen["idle"]
        seen["idle"] = idle
        return seen["renewals"] >= wanted

    return renewed


async def test_a_server_that_dies_and_comes_back_scores_everything_once_and_nothing_is_given_up(redis: Redis) -> None:
    port, ready = free_port(), asyncio.Event()
    server = start_server(port)
    worker = asyncio.create_task(serve(serving(redis, port, ready)))
    try:
        await asyncio.wait_for(ready.wait(), 30)
        await send(redis, *(rollout(group, n, "it is 2") for group in range(GROUPS // 2) for n in (0, 1)))
        await until(lambda: all_settled(redis), 20)
        server.kill()
        server.wait(10)
        await send(redis, *(rollout(group, n, "it is 2") for group in range(GROUPS // 2, GROUPS) for n in (0, 1)))
        await until(lambda: _any(events_named(redis, "reward_outage")), 20)
        await until(lease_renewals(redis, 6), 20)  # two leases go by; what is parked stays with its worker
        server = start_server(port)
        await until(lambda: all_settled(redis), 30)
    finally:
        worker.cancel()
        await asyncio.wait({worker})
        server.kill()
        server.wait(10)
    assert sorted(group.group_id for group in await emitted(redis)) == list(range(GROUPS))
    assert all(group.rewards == [1.0, 1.0] for group in await emitted(redis))
    assert (await stored(redis, 0))[0].reward_detail == {"words": 3.0}
    assert await dead(redis) == []
    assert (await counters(redis))["emitted"] == GROUPS
    assert await events_named(redis, "reward_outage") == await events_named(redis, "reward_recovered") == 1


async def _any(count: Any) -> bool:
    return bool(await count)
