"""A run's events over a real HTTP connection: all kinds, resumed at any id, ended with the run or the gateway."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.gateway.app import build_app
from services.gateway.parts import Parts
from services.gateway.release_evaluation import evaluation_field
from shared.messages import Event, GroupReady, Rendezvous, StepCommit, StepIntent, WeightVersion
from shared.runs import Runs
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import EVENTS, STEPS, WEIGHTS, Keys
from tests.services.gateway.conftest import KEY, Serve
from tests.services.gateway.gateway_cases import LOG, run_settings

KEYS = Keys("r1")
ServerEvent = tuple[str, str, dict[str, Any]]


@pytest.fixture
async def live(parts: Parts, serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    url = await serve(build_app(parts, LOG))
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        yield client


async def follow(client: httpx.AsyncClient, after: str = "", query: str = "") -> AsyncIterator[ServerEvent]:
    headers = {"Last-Event-ID": after} if after else {}
    async with client.stream("GET", f"/v1/runs/r1/events{query}", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields.get("event"):
                yield fields["event"], fields["id"], json.loads(fields["data"])
                fields = {}


async def play_run(redis: Redis) -> None:
    """A run of one evaluated version, from its creation to its end."""
    runs, ledger = Runs(redis), Ledger(redis, KEYS)
    await runs.create(run_settings(eval={"datasets": ["held-out"]}))
    await Stream[Event](redis, "r1", EVENTS).publish(Event(1.0, "reward", "dropped", {"group": 7}))
    place = Rendezvous("h", 1, "g", "gloo", 0.0, 0.0)
    await Stream[WeightVersion](redis, "r1", WEIGHTS).publish(WeightVersion(0, 0, [], "abc", {}, place))
    await redis.hset(KEYS.evaluation(0), "held-out|groups", 1)
    await redis.hset(KEYS.cursor, evaluation_field(0), "1")
    await ledger.tally(GroupReady(0, "eval", "held-out", 0, [5], [1.0], 0, 0, 0), off_version=False)
    await first_step(ledger)
    await runs.move("r1", ("queued",), "finished")


async def first_step(ledger: Ledger) -> None:
    epoch = await ledger.take_over()
    await ledger.intend(epoch, StepIntent(1, [1], 0, 0), [])
    await ledger.commit(epoch, StepCommit(1, 1, {"loss": 0.5}), [1], 10)


async def test_every_kind_of_event_arrives_and_the_final_state_is_the_last(
    live: httpx.AsyncClient, redis: Redis
) -> None:
    await play_run(redis)
    events = [event async for event in follow(live)]
    assert [name for name, _, _ in events] == ["event", "weights", "step", "evaluation", "state"]
    data = {name: body for name, _, body in events}
    assert data["event"]["detail"] == {"group": 7}
    assert data["weights"] == {"version": 0, "step": 0, "checksum": "abc"}
    assert data["step"] == {"step": 1, "weight_version": 1, "metrics": {"loss": 0.5}}
    assert (data["evaluation"]["dataset"], data["evaluation"]["reward_mean"]) == ("held-out", 1.0)
    assert data["state"] == {"run": "r1", "state": "finished", "reason": ""}


async def test_a_client_that_comes_back_with_any_id_gets_exactly_the_rest(
    live: httpx.AsyncClient, redis: Redis
) -> None:
    await play_run(redis)
    events = [event async for event in follow(live)]
    for place, (_, event_id, _) in enumerate(events[:-1]):
        rest = [event async for event in follow(live, event_id)]
        assert rest == events[place + 1 :]
    over = await live.get("/v1/runs/r1/events", headers={"Last-Event-ID": events[-1][1]})
    assert over.status_code == 204
    wrong = await live.get("/v1/runs/r1/events", headers={"Last-Event-ID": "7"})
    assert wrong.status_code == 422


async def test_events_of_a_live_run_arrive_as_they_happen(live: httpx.AsyncClient, redis: Redis) -> None:
    runs = Runs(redis)
    await runs.create(run_settings())
    stream = follow(live)
    assert (await anext(stream))[2]["state"] == "queued"
    await runs.move("r1", ("queued",), "running")
    await first_step(Ledger(redis, KEYS))
    async with asyncio.timeout(5):
        assert {(await anext(stream))[0] for _ in range(2)} == {"step", "state"}
        await runs.move("r1", ("running",), "failed", "trainer: no")
        assert [event async for event in stream][-1][2]["reason"] == "trainer: no"


async def test_without_following_the_stream_of_a_live_run_ends_with_what_is_there(
    live: httpx.AsyncClient, redis: Redis
) -> None:
    await Runs(redis).create(run_settings())
    await first_step(Ledger(redis, KEYS))
    for number in range(250):  # more than a page
        await Stream[Event](redis, "r1", EVENTS).publish(Event(1.0, "reward", "dropped", {"group": number}))
    async with asyncio.timeout(5):
        events = [event async for event in follow(live, query="?follow=false")]
    assert Counter(name for name, _, _ in events) == {"state": 1, "step": 1, "event": 250}
    assert [data["detail"]["group"] for name, _, data in events if name == "event"] == list(range(250))


async def test_a_gateway_that_stops_ends_the_stream(live: httpx.AsyncClient, redis: Redis, parts: Parts) -> None:
    await Runs(redis).create(run_settings())
    stream = follow(live)
    await anext(stream)
    parts.closing.set()
    async with asyncio.timeout(5):
        assert [event async for event in stream] == []


async def test_an_entry_that_does_not_decode_is_reported_and_passed_over(live: httpx.AsyncClient, redis: Redis) -> None:
    await Runs(redis).create(run_settings())
    await redis.xadd(KEYS.stream(STEPS), {"m": b"\xc1"})
    await Runs(redis).move("r1", ("queued",), "finished")
    events = [event async for event in follow(live)]
    assert [(name, body.get("event")) for name, _, body in events] == [("event", "unreadable_entry"), ("state", None)]
