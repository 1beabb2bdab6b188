"""/v1/runs/{run}/dead over HTTP: poison becomes a letter, is looked at, sent again and thrown away, exactly counted."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.ledger.describe_ledger import describe_ledger
from services.reward.attempts import Attempts
from shared import streams
from shared.runs import Runs
from shared.streams import Delivery
from tests.services.gateway.ledger.played_run import PlayedRun, scored

DEAD = "/v1/runs/r1/dead"


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    return await PlayedRun.open(redis)


def reward_worker(run: PlayedRun, deliveries: int = 1) -> Attempts:
    return Attempts(run.redis, "r1", "r0", Delivery(30, deliveries))


async def give_up_all(run: PlayedRun, error: str = "ZeroDivisionError: division by zero") -> None:
    """A reward plugin that raises on every attempt, to the last delivery."""
    worker = reward_worker(run)
    for message in await worker.receive(100, 0.01):
        await worker.fail(message, error)


async def balance(run: PlayedRun) -> None:
    ledger = await describe_ledger(run.redis, run.record, Path("nowhere"), verify=True)
    assert ledger.problems == []


async def counters(run: PlayedRun) -> dict[str, int]:
    return await run.ledger.counters()


async def test_a_plugin_that_always_raises_makes_letters_that_are_sent_again_and_then_trained(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.release(4)
    await run.generate(4)
    await give_up_all(run)
    listed = (await client.get(DEAD, params={"limit": 3})).json()
    assert (listed["total"], len(listed["letters"]), listed["letters"][0]["group_id"]) == (8, 3, 3)
    assert (await counters(run))["dropped"] == 4
    shown = (await client.get(f"{DEAD}/{listed['letters'][0]['id']}")).json()
    assert (shown["entry"]["prompt"], shown["entry"]["prompt_ids"], shown["hex"]) == ("3+1=", "2 numbers", "")
    assert (shown["redrivable"], shown["error"]) == (True, "ZeroDivisionError: division by zero")
    await balance(run)

    done = (await client.post(f"{DEAD}/redrive", json={"groups": [1, 2, 9]})).json()
    assert done == {"groups": [1, 2], "refused": {"group 9": "it has no dead letters"}}
    assert (await counters(run))["dropped"] == 2
    assert [letter["group_id"] for letter in (await client.get(DEAD)).json()["letters"]] == [3, 3, 0, 0]
    await balance(run)
    rest = (await client.post(f"{DEAD}/redrive", json={"all": True})).json()
    assert rest == {"groups": [0, 3], "refused": {}}
    await run.score(8)
    await run.commit(await run.intend(1, 4))
    await balance(run)
    after = await counters(run)
    assert (after["dropped"], after["dropped:dead"], after["trained"], after["redriven"]) == (0, 0, 4, 4)
    assert (await client.get(DEAD)).json() == {"letters": [], "total": 0}


async def test_what_does_not_decode_is_shown_in_hex_and_dies_again_when_it_is_sent_again(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.release(1)
    await run.generate(1)
    entries: list[Any] = await run.redis.xrange(run.rollouts.key)
    await run.redis.xdel(run.rollouts.key, entries[0][0])
    await run.redis.xadd(run.rollouts.key, {"m": b"\xc1 poison", "g": 0})
    for times in (1, 2):
        for message in await reward_worker(run).receive(10, 0.01):
            await run.ledger.join([scored(message)])
            await message.ack()
        (letter,) = (await client.get(DEAD)).json()["letters"]
        shown = (await client.get(f"{DEAD}/{letter['id']}")).json()
        assert (shown["entry"], shown["hex"][:5]) == (None, "c1 20")
        assert "not an Attempt" in shown["decode_error"]
        assert (await counters(run))["dropped:dead"] == 1
        if times == 1:
            assert (await client.post(f"{DEAD}/redrive", json={"all": True})).json()["groups"] == [0]
            assert (await counters(run))["dropped:dead"] == 0


async def test_letters_that_cannot_be_sent_again_say_why(
    client: httpx.AsyncClient, run: PlayedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run.release(1, "eval")
    await run.generate(1)
    await run.redis.xadd(run.rollouts.key, {"m": b"\xc1"})
    await give_up_all(run)
    await run.release(1)
    await run.generate(1)
    monkeypatch.setattr(streams, "LETTER_BYTES", 10)
    await give_up_all(run, "a reward as large as the world")
    letters = (await client.get(DEAD)).json()["letters"]
    why = {letter["group_id"]: letter["why_not"] for letter in letters}
    assert "of an evaluation" in why[0]
    assert "too many to be kept" in why[1]
    assert "no group" in why[None]
    assert "bytes were not kept" in letters[0]["error"]
    before = await counters(run)
    done = (await client.post(f"{DEAD}/redrive", json={"all": True})).json()
    assert (done["groups"], len(done["refused"])) == ([], 3)
    assert await counters(run) == before
    await balance(run)


async def test_a_letter_whose_group_was_trained_in_the_meantime_is_not_sent_again(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.to_ready(1)
    await run.redis.xadd(run.rollouts.key, {"m": b"\xc1", "g": 0})
    await give_up_all(run)
    (letter,) = (await client.get(DEAD)).json()["letters"]
    assert (letter["redrivable"], "decided in another way" in letter["why_not"]) == (False, True)
    await balance(run)


async def test_discarding_deletes_all_that_is_kept_of_a_group_and_leaves_it_dropped(
    client: httpx.AsyncClient, run: PlayedRun
) -> None:
    await run.release(3)
    await run.generate(3)
    await run.score(1)  # an attempt of group 0 is stored before the other is given up
    await run.redis.xadd(run.rollouts.key, {"m": b"\xc1"})
    await give_up_all(run)
    letters = (await client.get(DEAD)).json()["letters"]
    assert (len(letters), (await counters(run))["stored_bytes"] > 0) == (6, True)
    missing = await client.request("DELETE", DEAD, json={"ids": ["1-1"]})
    assert missing.status_code == 404
    one_of_two = next(letter["id"] for letter in letters if letter["group_id"] == 2)
    for wanted, count in (({"groups": [0]}, 1), ({"ids": [one_of_two]}, 2), ({"all": True}, 3)):
        answer = await client.request("DELETE", DEAD, json=wanted)
        assert (wanted, answer.json()) == (wanted, {"letters": count})
        await balance(run)
    after = await counters(run)
    assert (after["dropped:dead"], after["stored_bytes"]) == (3, 0)
    assert await run.redis.exists(run.keys.group(0), run.keys.arrays(0), run.keys.tokens(0), run.keys.dead_groups) == 0


@pytest.mark.parametrize("body", [{}, {"groups": [1], "all": True}, {"all": False}, {"group": [1]}])
async def test_a_request_says_which_letters_it_means(
    client: httpx.AsyncClient, run: PlayedRun, body: dict[str, Any]
) -> None:
    for method, path in (("POST", f"{DEAD}/redrive"), ("DELETE", DEAD)):
        answer = await client.request(method, path, json=body)
        assert answer.status_code == 422
        assert "value error" not in answer.json()["error"]["message"]


async def test_nothing_is_sent_again_in_a_run_that_has_ended(client: httpx.AsyncClient, run: PlayedRun) -> None:
    await run.release(1)
    await run.generate(1)
    await give_up_all(run)
    await Runs(run.redis).move("r1", ("running",), "stopped")
    answer = await client.post(f"{DEAD}/redrive", json={"all": True})
    assert (answer.status_code, "has stopped" in answer.json()["error"]["message"]) == (409, True)
    assert "has stopped" in (await client.get(DEAD)).json()["letters"][0]["why_not"]


async def test_a_letter_that_is_not_there_is_a_404(client: httpx.AsyncClient, run: PlayedRun) -> None:
    for letter in ("1-1", "no id at all"):
        answer = await client.get(f"{DEAD}/{letter}")
        assert (answer.status_code, "no dead letter" in answer.json()["error"]["message"]) == (404, True)
