"""/v1/runs/{run}/weights and the update in /v1/status: what was made of what, who has it, and what hangs."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.parts import Parts
from services.trainer.archive import open_archive
from shared.archive import step_file
from shared.runs import Runs, announce
from shared.topology import ACTIVE
from shared.version_ledger import Take
from tests.services.gateway.gateway_cases import run_settings
from tests.services.gateway.ledger.played_run import PlayedRun
from tests.services.gateway.weights.published_run import METRICS, engine, publish, train, write_checkpoint

TOOK = Take("done", 51.0, "life", {"connect": 0.5, "total": 2.0})


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    """Steps 1 and 2, versions 0 to 2."""
    run = await PlayedRun.open(redis)
    await publish(run, 0, one=TOOK, two=TOOK)
    for step in (1, 2):
        await train(run, step)
        await publish(run, step, one=TOOK, two=Take("failed", 52.0, failures=2, reason="no memory"))
    return run


async def get(client: httpx.AsyncClient, path: str, status: int = 200) -> dict[str, Any]:
    answer = await client.get(f"/v1/{path}")
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_versions_are_listed_newest_first_with_what_they_were_made_from(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    found = await get(client, "runs/r1/weights")
    assert (found["run"], found["current"]) == ("r1", 2)
    rows = [(v["version"], v["parent"], v["groups"], v["attempts"], v["tokens"]) for v in found["versions"]]
    assert rows == [(2, 1, 4, 8, 44), (1, 0, 4, 8, 44), (0, None, 0, 0, 0)]
    newest, _, oldest = found["versions"]
    assert (newest["checksum"], newest["metrics"]) == ("checksum-2", {"loss": 0.25, "reward_mean": 0.5})
    assert (newest["engines_done"], newest["engines_failed"], oldest["engines_done"]) == (1, 1, 2)
    assert (newest["is_current"], oldest["is_current"], newest["left_at"]) == (True, False, None)
    assert (newest["announced"], oldest["committed"]) == (50.0, None)
    assert newest["committed"] > run.record.created - 5


async def test_a_page_of_versions_ends_where_the_next_one_begins(client: httpx.AsyncClient, run: PlayedRun) -> None:
    async def numbers(query: str) -> list[int]:
        return [one["version"] for one in (await get(client, f"runs/r1/weights?{query}"))["versions"]]

    assert await numbers("limit=2") == [2, 1]
    assert await numbers("before=1&limit=2") == [0]
    assert await numbers("before=0") == []
    assert await numbers("before=99") == [2, 1, 0]


async def test_one_version_says_what_it_trained_and_how_each_engine_took_it(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    found = await get(client, "runs/r1/weights/2")
    assert (found["group_ids"], found["metrics"], found["backend"]) == ([4, 5, 6, 7], METRICS, "gloo")
    one, two = found["engines"]
    assert (one["engine"], one["state"], one["seconds"], one["phases"]) == ("one", "done", 2.0, TOOK.seconds)
    assert (two["state"], two["failures"], two["reason"], two["up"]) == ("failed", 2, "no memory", False)
    assert (await get(client, "runs/r1/weights/1"))["engines"][0]["up"] is None
    missing = await get(client, "runs/r1/weights/3", 404)
    assert "has no version 3; it has those from 0 to 2" in missing["error"]["message"]
    assert "there is no run 'r2'" in (await get(client, "runs/r2/weights", 404))["error"]["message"]


async def test_a_run_without_engines_lists_the_versions_of_its_steps(client: httpx.AsyncClient, redis: Redis) -> None:
    run = await PlayedRun.open(redis)
    await train(run, 1)
    found, initial = (await get(client, "runs/r1/weights"))["versions"]
    assert (found["version"], found["checksum"], found["groups"], found["engines_done"]) == (1, None, 4, 0)
    assert (await get(client, "runs/r1/weights/1"))["engines"] == []
    assert (initial["version"], initial["parent"]) == (0, None)
    assert (await get(client, "runs/r1/weights/0"))["groups"] == 0
    (last,) = (await get(client, "runs/r1/weights?before=1"))["versions"]
    assert last["version"] == 0


async def test_the_version_that_a_branch_begins_with_names_its_parent(client: httpx.AsyncClient, redis: Redis) -> None:
    run = await PlayedRun.open(redis, branch={"run": "r0", "step": 6})
    await run.redis.hset(run.keys.counters, mapping={"step": "6", "intended": "6"})
    await publish(run, 6, one=TOOK)
    (found,) = (await get(client, "runs/r1/weights"))["versions"]
    assert (found["version"], found["parent"]) == (6, None)
    assert (await get(client, "runs/r1/weights/6"))["parent_run"] == "r0"
    await get(client, "runs/r1/weights/5", 404)


async def test_versions_that_can_be_had_are_those_behind_a_checkpoint_or_in_the_archive(
    client: httpx.AsyncClient, run: PlayedRun, parts: Parts
) -> None:
    async def spans() -> Any:
        return (await get(client, "runs/r1/weights"))["available"]

    assert await spans() is None  # the run's folder is on another machine
    (parts.runs_folder / "r1").mkdir(parents=True)
    assert await spans() == [[0, 2]]
    await run.ledger.forget(run.epoch, [0, 1, 2, 3], 1)
    assert await spans() == [[0, 0]]
    write_checkpoint(parts.runs_folder, run, 1, owner="an earlier run")
    assert await spans() == [[0, 0]]
    write_checkpoint(parts.runs_folder, run, 2)
    assert await spans() == [[0, 0], [2, 2]]
    archive(parts.runs_folder, "of an earlier run", 1)
    assert await spans() == [[0, 0], [2, 2]]
    archive(parts.runs_folder, f"{run.record.created:.6f}", 1)
    assert await spans() == [[0, 2]]
    assert [v["can_be_had"] for v in (await get(client, "runs/r1/weights"))["versions"]] == [True] * 3


def archive(runs_folder: Path, owner: str, step: int) -> None:
    open_archive(runs_folder / "r1", owner)
    step_file(runs_folder / "r1", step).write_bytes(b"a step")


async def test_the_status_shows_where_every_engine_is_with_the_newest_version(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.redis.set(ACTIVE, "r1")
    await engine(run, "one", 2, "done", checksum="checksum-2", seconds={"load": 1.5, "total": 2.0})
    await engine(run, "stuck", 2, "go")
    await engine(run, "two", 2, "failed", reason="400: no")
    await engine(run, "mute", 2, "silent")
    await engine(run, "older", 2, "done", checksum="of weights that had the number before")
    update = (await get(client, "status"))["update"]
    assert (update["run"], update["version"], update["checksum"]) == ("r1", 2, "checksum-2")
    assert (update["enrol_until"], update["done_until"], update["complete"]) == (100.0, 200.0, False)
    states = {one["engine"]: one for one in update["engines"]}
    assert {name: one["state"] for name, one in states.items()} == {
        "mute": "silent", "older": "outdated", "one": "done", "stuck": "go", "two": "failed",
    }  # fmt: skip
    assert states["one"]["seconds"] == 2.0
    assert 5 <= states["stuck"]["seconds"] < 60
    assert (states["two"]["reason"], states["two"]["failures"]) == ("400: no", 2)
    assert all(one["up"] for one in states.values())


async def test_an_update_is_complete_when_all_engines_that_are_up_have_it(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    """Engine two failed and is gone; what engine one said an hour ago is kept in the ledger alone."""
    await run.redis.set(ACTIVE, "r1")
    await announce(run.redis, "r1", "engine-up/one")
    update = (await get(client, "status"))["update"]
    assert update["complete"] is True
    assert [(one["engine"], one["state"], one["up"]) for one in update["engines"]] == [
        ("one", "done", True),
        ("two", "failed", False),
    ]


async def test_a_state_that_this_gateway_does_not_know_is_shown_as_it_is(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.redis.set(ACTIVE, "r1")
    part = {"state": "unpacking", "announcement": "g", "incarnation": "life", "ranks": 1, "of_tomorrow": [1]}
    await run.redis.hset(run.keys.enrolled(2), "new", json.dumps(part))
    (found,) = [one for one in (await get(client, "status"))["update"]["engines"] if one["engine"] == "new"]
    assert (found["state"], found["seconds"]) == ("unpacking", None)


async def test_before_the_first_version_there_is_no_update(client: httpx.AsyncClient, redis: Redis) -> None:
    await Runs(redis).create(run_settings())
    await redis.set(ACTIVE, "r1")
    status = await get(client, "status")
    assert (status["active_run"], status["update"]) == ("r1", None)
