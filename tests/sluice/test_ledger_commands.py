"""`sluice ledger`, `lineage`, `dead` and `run delete` against a real gateway: tables in 80 columns, exit codes."""

import json
import re
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from services.reward.attempts import Attempts
from shared.streams import Delivery
from tests.services.gateway.ledger.played_run import PlayedRun
from tests.sluice.conftest import Outcome, Sluice

COLUMNS = 80


@pytest.fixture
def narrow(connected: Sluice, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sluice]:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))

    def call(*arguments: str) -> Outcome:
        outcome = connected(*arguments)
        assert max(map(len, outcome.out.splitlines()), default=0) <= COLUMNS or "--json" in arguments
        return outcome

    yield call


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    return await PlayedRun.open(redis)


async def test_the_ledger_is_shown_proven_and_its_exit_code_says_whether_it_balances(
    narrow: Sluice, run: PlayedRun
) -> None:
    await run.everywhere()
    outcome = narrow("ledger", "r1", "--verify")
    assert (outcome.code, "it balances" in outcome.out) == (0, True)
    for row in ("pending: ready", "dropped: filter", "tokens by worker", "tokens by version"):
        assert row in outcome.out
    assert json.loads(narrow("ledger", "r1", "--verify", "--json").out)["balanced"] is True
    assert "--verify proves the rest" in narrow("ledger", "r1").out
    await run.redis.hincrby(run.keys.counters, "trained", 1)
    assert narrow("ledger", "r1").code == 0
    outcome = narrow("ledger", "r1", "--verify")
    assert (outcome.code, "does not balance" in outcome.out, "groups trained and in" in outcome.out) == (1, True, True)


async def test_the_lineage_of_a_group_is_shown(narrow: Sluice, run: PlayedRun) -> None:
    await run.everywhere()
    outcome = narrow("lineage", "r1", "2")
    for text in ("trained", "2+1=", "sums, row 2", "w1", "redis"):
        assert text in outcome.out
    assert "reason=filter" in narrow("lineage", "r1", "9").out
    assert json.loads(narrow("lineage", "r1", "13", "--json").out)["state"] == "joining"
    missing = narrow("lineage", "r1", "99")
    assert (missing.code, "there is no 99" in missing.err) == (1, True)


async def test_dead_letters_are_listed_shown_sent_again_and_discarded(narrow: Sluice, run: PlayedRun) -> None:
    assert "no dead letters" in narrow("dead", "list", "r1").out
    await run.release(3)
    await run.generate(3)
    worker = Attempts(run.redis, "r1", "r0", Delivery(30, 1))
    for message in await worker.receive(10, 0.01):
        await worker.fail(message, "ZeroDivisionError: [red] division by zero")
    listed = narrow("dead", "list", "r1", "-n", "2")
    assert ("[red] division" in listed.out, "4 more" in listed.out) == (True, True)
    letter = json.loads(narrow("dead", "list", "r1", "--json").out)["letters"][0]["id"]
    assert re.search("prompt_ids +2 numbers", narrow("dead", "show", "r1", letter).out)
    sent = narrow("dead", "redrive", "r1", "0", "7")
    assert (sent.code, "sent again: group 0" in sent.err, "not sent: group 7" in sent.err) == (0, True, True)
    assert narrow("dead", "redrive", "r1", "7").code == 1
    assert "--all" in narrow("dead", "redrive", "r1").err
    assert "deleted 2 dead letters" in narrow("dead", "discard", "r1", "--letter", letter).err
    assert "deleted 2 dead letters" in narrow("dead", "discard", "r1", "--all").err
    assert narrow("ledger", "r1", "--verify").code == 0


async def test_runs_are_listed_in_a_narrow_terminal_and_deleted_when_they_have_ended(
    narrow: Sluice, run: PlayedRun
) -> None:
    await run.everywhere()
    assert "running" in narrow("run", "list").out
    samples = narrow("run", "samples", "r1")
    assert ("train" in samples.out, "eval" in samples.out) == (True, False)
    assert "train" not in narrow("run", "samples", "r1", "--evaluations").out
    refused = narrow("run", "delete", "r1")
    assert (refused.code, "stop it first" in refused.err) == (1, True)
    await run.redis.hset(run.keys.record, mapping={"state": "failed", "reason": "trainer: " + "no memory " * 20})
    assert "no memory" in narrow("run", "list").out
    assert json.loads(narrow("run", "delete", "r1", "--json").out) == {"deleted": "r1"}
    assert narrow("run", "show", "r1").code == 1
