"""`sluice weights` and the update in `sluice status` against a real gateway: tables in 80 columns, exit codes."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.memory_parts import PRESENT, MemoryPart, write_memory_part
from shared.messages import MemoryTurn, StepCommit, StepIntent
from shared.rollback import read_rollback
from shared.runs import announce
from shared.topology import ACTIVE, Keys
from shared.version_ledger import Take
from tests.conftest import until
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
    assert "older ones" not in listed.out
    assert "older ones: --before 1," in narrow("weights", "list", "r1", "-n", "1").out
    shown = narrow("weights", "show", "r1", "1")
    assert ["parent", "0"] in [line.split() for line in shown.out.splitlines()]
    for text in ("4 groups, 8 attempts, 44 tokens", "failed, gone", "no [red] memory", "reward_mean"):
        assert text in shown.out
    assert json.loads(narrow("weights", "show", "r1", "1", "--json").out)["engines"][0]["engine"] == "one"
    missing = narrow("weights", "show", "r1", "7")
    assert (missing.code, "has no version 7; it has those from 0 to 1" in missing.err) == (1, True)


async def test_a_version_that_no_engine_has_answered_says_so(narrow: Sluice, run: PlayedRun) -> None:
    await train(run, 2)
    await publish(run, 2)
    assert "none yet" in narrow("weights", "list", "r1", "-n", "1").out


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


async def test_a_rollback_is_waited_for_until_the_older_weights_are_published_again(
    narrow: Sluice, run: PlayedRun
) -> None:
    """The trainer is played beside the command, which waits in a thread of its own."""
    waiting = asyncio.create_task(asyncio.to_thread(narrow, "weights", "rollback", "r1", "0"))
    await until(lambda: is_asked(run))
    asked = await read_rollback(run.redis, run.keys)
    assert asked is not None
    await run.ledger.roll_back(run.epoch, StepIntent(2, [], 0, 1), 4, asked)
    await run.ledger.commit(run.epoch, StepCommit(2, 2, {}), [], 0)
    await publish(run, 2, one=TOOK)
    outcome = await asyncio.wait_for(waiting, 20)
    assert outcome.code == 0
    assert "version 2 of run r1 has the weights of version 0, and the run goes on from it" in outcome.err
    assert "taken by 1 of 1 engines" in outcome.err
    assert "left at 2" in narrow("weights", "list", "r1").out


async def test_a_rollback_that_no_engine_takes_is_an_error(narrow: Sluice, run: PlayedRun) -> None:
    waiting = asyncio.create_task(asyncio.to_thread(narrow, "weights", "rollback", "r1", "0", "--within", "3"))
    await until(lambda: is_asked(run))
    asked = await read_rollback(run.redis, run.keys)
    assert asked is not None
    await run.ledger.roll_back(run.epoch, StepIntent(2, [], 0, 1), 4, asked)
    await run.ledger.commit(run.epoch, StepCommit(2, 2, {}), [], 0)
    await publish(run, 2)
    outcome = await asyncio.wait_for(waiting, 20)
    assert outcome.code == 1
    assert "is published, but no engine has it yet, after 3 s" in outcome.err


async def test_a_rollback_that_is_refused_or_late_or_of_a_run_that_ends_is_an_error(
    narrow: Sluice, run: PlayedRun
) -> None:
    wrong = narrow("weights", "rollback", "r1", "7")
    assert (wrong.code, "give one of 0 to 1" in wrong.err) == (1, True)
    late = narrow("weights", "rollback", "r1", "0", "--within", "1")
    assert (late.code, "was not taken up by the trainer yet after 1 s" in late.err) == (1, True)
    asked = json.loads(narrow("weights", "rollback", "r1", "0", "--detach", "--json").out)
    assert (asked["state"], asked["step"]) == ("asked", None)
    assert "a rollback to version 0 was asked" in narrow("weights", "list", "r1").out
    standing = await read_rollback(run.redis, run.keys)
    assert standing is not None
    await run.ledger.refuse_rollback(run.epoch, standing, "version 0 cannot be had any more")
    assert "was refused: version 0 cannot" in " ".join(narrow("weights", "list", "r1").out.split())
    narrow("weights", "rollback", "r1", "0", "--detach")
    await run.redis.hset(run.keys.record, "state", "finished")
    ended = narrow("weights", "rollback", "r1", "0")
    assert (ended.code, "sluice branch r1 --from 0" in ended.err) == (1, True)


async def is_asked(run: PlayedRun) -> bool:
    return await read_rollback(run.redis, run.keys) is not None


async def test_the_status_shows_whose_the_memory_is_and_which_engine_has_not_given_it(
    narrow: Sluice, run: PlayedRun
) -> None:
    await run.redis.set(ACTIVE, "r1")
    shown = narrow("status").out
    assert "memory " not in shown
    assert "no engine is up" in shown
    for name in ("fast", "slow"):
        await announce(run.redis, "r1", f"{PRESENT}/{name}")
    await run.ledger.take_turn(run.epoch, MemoryTurn("t1", "trainer", 1760000000.0, 1760000120.0))
    await write_memory_part(run.redis, Keys("r1"), "fast", MemoryPart("t1", "released", 1760000001.0, 0.5))
    shown = " ".join(narrow("status").out.split())
    assert "memory the trainer's, which is not up, since" in shown
    assert "; fast released, slow asked" in shown
    await announce(run.redis, "r1", "trainer/t")
    assert "memory the trainer's since" in " ".join(narrow("status").out.split())
    await run.ledger.take_turn(run.epoch, MemoryTurn("t2", "engines", 1760000002.0, 0.0))
    told = json.loads(narrow("status", "--json").out)["gateway"]["memory"]
    assert (told["holder"], told["until"]) == ("engines", None)
    assert [one["state"] for one in told["engines"]] == ["free", "free"]
