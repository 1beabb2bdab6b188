"""A rollback over HTTP: asked for once, refused with what could be had, and shown until the engines have it."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.ledger.check_groups import excess
from services.gateway.ledger.read_records import read_records
from services.gateway.ledger.take_snapshot import take_snapshot
from services.gateway.parts import Parts
from shared.messages import StepCommit, StepIntent
from shared.rollback import Rollback, read_rollback
from shared.runs import Runs
from shared.scripts import Ledger
from shared.topology import ACTIVE
from tests.services.gateway.ledger.played_run import PlayedRun
from tests.services.gateway.weights.published_run import publish, train, write_checkpoint


@pytest.fixture
async def run(redis: Redis, parts: Parts) -> PlayedRun:
    """Steps 1 to 3, of which the first two are covered by the checkpoint of the second."""
    run = await PlayedRun.open(redis)
    await publish(run, 0)
    for step in (1, 2, 3):
        await train(run, step)
        await publish(run, step)
    for step in (1, 2):
        await run.ledger.forget(run.epoch, range(4 * step - 4, 4 * step), step)
    write_checkpoint(parts.runs_folder, run, 2)
    return run


async def ask(client: httpx.AsyncClient, version: int, status: int = 202, run: str = "r1") -> dict[str, Any]:
    answer = await client.post(f"/v1/runs/{run}/weights/{version}/rollback")
    assert answer.status_code == status, answer.text
    return answer.json()


async def refusal(client: httpx.AsyncClient, version: int, status: int = 409) -> str:
    return str((await ask(client, version, status))["error"]["message"])


async def record(run: PlayedRun, step: int, version: int) -> StepIntent:
    """What the trainer does about a rollback that is asked for."""
    asked, intent = await read_rollback(run.redis, run.keys), StepIntent(step, [], version, step)
    assert asked is not None
    await run.ledger.roll_back(run.epoch, intent, 4, asked)
    return intent


async def test_a_rollback_is_asked_for_once_and_shown_until_it_is_published(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    async def shown() -> dict[str, Any] | None:
        return (await client.get("/v1/status")).json()["update"]["rollback"]

    await run.redis.set(ACTIVE, "r1")
    assert await shown() is None
    asked = await ask(client, 2)
    assert (asked["run"], asked["version"], asked["state"], asked["step"]) == ("r1", 2, "asked", None)
    assert await ask(client, 2) == asked
    assert "about to go back to version 2" in await refusal(client, 0)
    assert await shown() == asked
    intent = await record(run, 4, 2)
    recorded = (await client.get("/v1/runs/r1/weights")).json()["rollback"]
    assert (recorded["state"], recorded["step"]) == ("recorded", 4)
    assert await shown() == recorded
    await run.ledger.commit(run.epoch, StepCommit(4, 4, {}), intent.group_ids, 0)
    await publish(run, 4)
    assert await shown() is None
    assert (await ask(client, 3))["version"] == 3


async def test_a_version_behind_a_rollback_names_its_parent_and_what_was_left(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await ask(client, 2)
    await record(run, 4, 2)
    await run.ledger.commit(run.epoch, StepCommit(4, 4, {"rolled_back_to": 2.0}), [], 0)
    await publish(run, 4)
    await train(run, 5)
    await publish(run, 5)
    found = (await client.get("/v1/runs/r1/weights")).json()
    rows = [(v["version"], v["parent"], v["groups"], v["left_at"], v["is_current"]) for v in found["versions"]]
    assert rows == [
        (5, 4, 4, None, True),
        (4, 2, 0, None, False),
        (3, 2, 4, 4, False),
        (2, 1, 4, None, False),
        (1, 0, 4, None, False),
        (0, None, 0, None, False),
    ]
    assert found["available"] == [[0, 0], [2, 5]]


async def test_what_cannot_be_is_refused_with_what_can(client: httpx.AsyncClient, run: PlayedRun) -> None:
    assert "give one of 0 to 3" in await refusal(client, 4, 404)
    assert "goes on from anyway" in await refusal(client, 3)
    gone = await refusal(client, 1)
    assert "version 1 cannot be had any more" in gone
    assert "those that can be had: 0, 2 to 3" in gone
    await Runs(run.redis).move("r1", ("running",), "finished")
    assert "sluice branch r1 --from 2" in await refusal(client, 2)
    assert "those that can be had: 0, 2 to 3" in await refusal(client, 1)
    assert await read_rollback(run.redis, run.keys) is None
    assert "there is no run 'r9'" in (await ask(client, 1, 404, "r9"))["error"]["message"]


async def test_where_the_runs_folder_is_elsewhere_the_trainer_decides(client: httpx.AsyncClient, redis: Redis) -> None:
    run = await PlayedRun.open(redis)
    await train(run, 1)
    await train(run, 2)
    await run.ledger.forget(run.epoch, range(4), 1)
    assert (await ask(client, 1))["state"] == "asked"
    asked = await read_rollback(redis, run.keys)
    assert asked is not None
    await run.ledger.refuse_rollback(run.epoch, asked, "it is gone")
    shown = (await client.get("/v1/runs/r1/weights")).json()["rollback"]
    assert (shown["state"], shown["reason"]) == ("refused", "it is gone")
    assert (await ask(client, 1))["state"] == "asked"


async def test_the_ledger_of_a_run_that_went_back_balances_at_every_moment(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    async def balances() -> None:
        ledger = (await client.get("/v1/runs/r1/ledger?verify=true")).json()
        assert (ledger["balanced"], ledger["problems"]) == (True, [])

    await run.to_ready(4)
    await ask(client, 2)
    await balances()
    intent = await record(run, 4, 2)
    await balances()
    await run.ledger.commit(run.epoch, StepCommit(4, 4, {}), intent.group_ids, 0)
    await balances()
    await publish(run, 4)
    await balances()
    await run.ledger.drop_ready(12, "rolled_back", _dropped(12), "0-0")
    await balances()
    assert (await client.get("/v1/runs/r1/ledger")).json()["groups"]["dropped"] == {"rolled_back": 1}


async def test_groups_beyond_what_a_rollback_left_room_for_are_told(run: PlayedRun) -> None:
    """Ten steps of four groups: when all are released, one that goes back leaves four of them without a step."""
    await run.release(28)
    settings, keys = run.record.settings, run.keys

    async def over() -> int:
        return excess(await take_snapshot(run.redis, keys), await read_records(run.redis, keys), settings)

    assert await over() == 0
    await run.redis.set(keys.rollback, b'{"version": 2, "asked": 1}')
    await record(run, 4, 2)
    assert await over() == 0
    await Ledger(run.redis, keys).advance("weight_version", 4)
    assert await over() == 0
    await run.release(1)
    assert await over() == 1
    assert await read_rollback(run.redis, keys) == Rollback(2, 1.0, "recorded", 4)


def _dropped(group: int) -> Any:
    from shared.messages import Event

    return Event(0.0, "trainer", "dropped", {"group": group, "reason": "rolled_back"})
