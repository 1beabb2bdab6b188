"""`sluice weights` and the update in `sluice status` against a real gateway: tables in 80 columns, exit codes."""

import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.topology import ACTIVE
from shared.version_ledger import Take
from tests.services.gateway.ledger.played_run import PlayedRun
from tests.services.gateway.weights.published_run import engine, publish, train
from tests.sluice.conftest import Sluice

TOOK = Take("done", 51.0, "life", {"connect": 0.5, "total": 2.0})


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[PlayedRun]:
    run = await PlayedRun.open(redis)
    await publish(run, 0, one=TOOK)
    await train(run, 1)
    await publish(run, 1, one=TOOK, two=Take("failed", 52.0, failures=2, reason="no [red] memory"))
    yield run
    await redis.delete(ACTIVE)


async def test_versions_are_listed_and_one_is_shown_with_its_engines(narrow: Sluice, run: PlayedRun) -> None:
    listed = narrow("weights", "list", "r1")
    assert listed.code == 0
    for text in ("checksum-1", "current", "1 of 2", "1 of 1", "44"):
        assert text in listed.out
    newest = json.loads(narrow("weights", "list", "r1", "-n", "1", "--json").out)
    assert [version["version"] for version in newest["versions"]] == [1]
    shown = narrow("weights", "show", "r1", "1")
    for text in ("4 groups, 8 attempts, 44 tokens", "failed, gone", "no [red] memory", "reward_mean"):
        assert text in shown.out
    assert json.loads(narrow("weights", "show", "r1", "1", "--json").out)["engines"][0]["engine"] == "one"
    missing = narrow("weights", "show", "r1", "7")
    assert (missing.code, "has no version 7; its newest is 1" in missing.err) == (1, True)


async def test_a_run_without_versions_says_so(narrow: Sluice, redis: Redis) -> None:
    await PlayedRun.open(redis)
    assert "no versions yet" in narrow("weights", "list", "r1").out


async def test_the_status_shows_an_engine_that_hangs_in_an_update(narrow: Sluice, run: PlayedRun) -> None:
    await run.redis.set(ACTIVE, "r1")
    await engine(run, "one", 1, "done", checksum="checksum-1", seconds={"total": 2.0})
    await engine(run, "slow", 1, "go")
    shown = narrow("status")
    assert "version 1, announced" in shown.out
    assert "1 of 2 engines have it" in shown.out
    assert [line.split()[:2] for line in shown.out.splitlines() if line.startswith(("one", "slow", "two"))] == [
        ["one", "done"],
        ["slow", "go"],
        ["two", "failed,"],
    ]
    assert json.loads(narrow("status", "--json").out)["gateway"]["update"]["version"] == 1
