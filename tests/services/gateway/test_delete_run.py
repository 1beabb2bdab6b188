"""Deleting a run over HTTP: everything of it, nothing of others, and only when nobody needs it any more."""

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.parts import Parts
from shared.runs import Runs, announce, withdraw
from shared.topology import ACTIVE, RUNS
from tests.services.gateway.gateway_cases import run_settings
from tests.services.gateway.ledger.played_run import PlayedRun


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    run = await PlayedRun.open(redis)
    await run.everywhere()
    await redis.set(ACTIVE, "r1")
    return run


async def refused(client: httpx.AsyncClient, sentence: str) -> bool:
    answer = await client.delete("/v1/runs/r1")
    return answer.status_code == 409 and sentence in answer.json()["error"]["message"]


async def test_a_run_that_has_ended_leaves_nothing_behind_and_the_next_one_is_served(
    client: httpx.AsyncClient, redis: Redis, run: PlayedRun, parts: Parts
) -> None:
    runs = Runs(redis)
    await runs.move("r1", ("running",), "finished")
    await runs.create(run_settings("r10"))  # its name begins with that of the other
    await redis.set("{r10}:group:1", "kept")
    folder = parts.runs_folder / "r1" / "checkpoints"
    folder.mkdir(parents=True)
    assert (await client.delete("/v1/runs/r1")).status_code == 204
    assert [key async for key in redis.scan_iter("{r1}:*")] == []
    assert await redis.zrange(RUNS, 0, -1) == [b"r10"]
    assert await redis.get("{r10}:group:1") == b"kept"
    assert folder.exists()
    assert (await client.get("/v1/runs/r1")).status_code == 404
    active = await runs.activate_next()
    assert active is not None
    assert active.run == "r10"


async def test_its_files_go_too_if_that_is_asked_for(
    client: httpx.AsyncClient, redis: Redis, run: PlayedRun, parts: Parts
) -> None:
    await Runs(redis).move("r1", ("running",), "finished")
    (parts.runs_folder / "r1" / "export").mkdir(parents=True)
    (parts.runs_folder / "r2").mkdir()
    assert (await client.delete("/v1/runs/r1?files=true")).status_code == 204
    assert [path.name for path in parts.runs_folder.iterdir()] == ["r2"]


async def test_a_run_that_somebody_needs_is_kept(client: httpx.AsyncClient, redis: Redis, run: PlayedRun) -> None:
    runs = Runs(redis)
    assert await refused(client, "run r1 is running; stop it first")
    await runs.move("r1", ("running",), "finished")
    await announce(redis, "r1", "reward/r0")
    assert await refused(client, "reward/r0 did not leave run r1 yet")
    await withdraw(redis, "r1", "reward/r0")
    await runs.create(run_settings("r2", branch={"run": "r1", "step": 1}))
    assert await refused(client, "run r2 branches from run r1")
    await runs.move("r2", ("queued",), "stopped")
    assert (await client.delete("/v1/runs/r1")).status_code == 204
