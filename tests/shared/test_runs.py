"""The registry of runs: one active, first come first served, states that only move forward."""

import json
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from shared.errors import RunConflict
from shared.run_settings import BranchSettings, RunSettings
from shared.runs import Runs, announce, present, withdraw
from shared.settings import validate
from shared.topology import Keys


def settings(name: str) -> RunSettings:
    tree = {"name": name, "model": {"path": "m"}, "data": {"datasets": [{"name": "d"}]}, "trainer": {"steps": 1}}
    return validate(RunSettings, tree, "run.toml")


async def test_a_name_is_taken_once(redis: Redis) -> None:
    runs = Runs(redis)
    await runs.create(settings("a"))
    with pytest.raises(RunConflict, match=r"run a exists; .* --set name=a-2, .*`sluice run delete a`"):
        await runs.create(settings("a"))
    assert [record.run for record in await runs.list()] == ["a"]


async def test_a_branch_whose_name_is_taken_is_told_the_option_of_branches(redis: Redis) -> None:
    runs = Runs(redis)
    branch = settings("a-3").model_copy(update={"branch": BranchSettings(run="a", step=3)})
    await runs.create(branch)
    with pytest.raises(RunConflict, match="choose another name, such as --name a-3-2"):
        await runs.create(branch)


async def test_runs_become_active_one_after_the_other(redis: Redis) -> None:
    runs = Runs(redis)
    assert await runs.activate_next() is None
    for name in ("a", "b"):
        await runs.create(settings(name))
    first = await runs.activate_next()
    assert first is not None
    assert (first.run, first.state) == ("a", "starting")
    assert (await runs.activate_next()) == first
    assert await runs.move("a", ("starting",), "running")
    assert await runs.move("a", ("running",), "finished")
    second = await runs.activate_next()
    assert second is not None
    assert second.run == "b"


async def test_a_run_ends_once_and_keeps_its_reason(redis: Redis) -> None:
    runs = Runs(redis)
    await runs.create(settings("a"))
    assert await runs.fail("a", "trainer: no such model")
    assert not await runs.fail("a", "reward: also wrong")
    assert not await runs.move("a", ("running",), "finished")
    record = await runs.get("a")
    assert record is not None
    assert (record.state, record.reason) == ("failed", "trainer: no such model")
    assert record.ended is not None


async def test_a_run_whose_settings_this_version_would_refuse_is_still_known(redis: Redis) -> None:
    runs = Runs(redis)
    await runs.create(settings("a"))
    stored = settings("a").model_dump(mode="json")
    stored["seed"], stored["gone"], stored["trainer"]["learning_rat"] = -1, 3, 1.0
    await cast(Any, redis.hset(Keys("a").record, "settings", json.dumps(stored)))
    (record,) = await runs.list()
    wanted = settings("a").model_copy(update={"seed": -1})
    assert record.settings == wanted
    assert record.settings.data.datasets[0].name == "d"
    assert await runs.fail("a", "too old")


async def test_settings_survive_the_registry(redis: Redis) -> None:
    runs = Runs(redis)
    await runs.create(settings("a"))
    record = await runs.get("a")
    assert record is not None
    assert record.settings == settings("a")
    assert await runs.get("b") is None


async def test_a_service_is_present_while_it_says_so(redis: Redis) -> None:
    await announce(redis, "a", "trainer/t")
    await announce(redis, "a", "rollout/w1")
    await redis.zadd("{a}:alive", {"rollout/silent": 1.0})
    assert await present(redis, "a") == ["rollout/w1", "trainer/t"]
    assert await present(redis, "a", "rollout") == ["w1"]
    await withdraw(redis, "a", "trainer/t")
    assert await present(redis, "a", "trainer") == []
