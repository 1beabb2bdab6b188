"""The loop against a real Redis: slots, settling, redelivery, dead letters, rejected groups, stopping."""

import asyncio
import contextlib
import subprocess

import numpy as np
import pytest
from redis.exceptions import ResponseError

from benchmarks.free_ports import free_port
from deploy import embedded_redis
from services.rollout import generation_loop
from services.rollout.generation_loop import GenerationLoop, Limits
from services.rollout.refusals import GroupRejected, Superseded
from shared.await_redis import AwaitRedis
from shared.messages import DeadLetter, Event, Prompt, Rollout, asked
from shared.redis_connection import UNREACHABLE, connect_checked
from shared.scripts import Ledger
from shared.streams import Delivery, Stream
from shared.tasks import end
from shared.topology import DEAD, EVENTS, PROMPTS, ROLLOUTS, Keys
from tests.conftest import until

RUN = "r1"


@pytest.fixture(autouse=True)
def short_reads(monkeypatch):
    """A reader that blocks looks for abandoned entries only when it returns."""
    monkeypatch.setattr(generation_loop, "BLOCK_S", 0.05)


def prompt(group_id, kind="train", pinned=None):
    return Prompt(group_id, kind, "sums", group_id, "1+1=", 2, pinned_version=pinned)


def rollout(prompt, attempt, worker="w"):
    ids, numbers = np.asarray([1, 2], np.int32), np.zeros(2, np.float32)
    return Rollout(
        **asked(prompt),
        attempt=attempt,
        prompt_ids=ids,
        token_ids=ids,
        logprobs=numbers,
        loss_mask=[(1, 2)],
        weight_versions=[(0, 2)],
        finish_reason="stop",
        text="2",
        worker=worker,
        seconds=0.1,
    )


async def make_at_once(prompt):
    return [rollout(prompt, attempt) for attempt in range(2)]


def prompts_of(redis, consumer="w", lease_s=30.0, max_deliveries=5) -> Stream[Prompt]:
    return Stream(redis, RUN, PROMPTS, consumer, Delivery(lease_s, max_deliveries))


@contextlib.asynccontextmanager
async def working(redis, log, make_group, stream=None, concurrency=4, deadline_s=10.0):
    prompts = stream or prompts_of(redis)
    ledger = Ledger(redis, Keys(RUN))
    limits = Limits(concurrency, deadline_s)
    loop = GenerationLoop(prompts, ledger, make_group, log, limits, AwaitRedis(log, RUN))
    task = asyncio.create_task(loop.run())
    try:
        yield task
    finally:
        await end(task)


async def made(redis) -> list[tuple[int, int]]:
    return [(r.group_id, r.attempt) for _, r in await Stream(redis, RUN, ROLLOUTS).read(count=1000)]


async def events(redis) -> list[Event]:
    return [event for _, event in await Stream(redis, RUN, EVENTS).read()]


def until_made(redis, count):
    async def enough():
        return len(await made(redis)) >= count

    return until(enough)


async def test_every_attempt_of_a_group_is_published_and_the_prompt_is_spent(redis, log):
    prompts = prompts_of(redis)
    await prompts.publish(*(prompt(n) for n in range(20)))
    async with working(redis, log, make_at_once):
        await until_made(redis, 40)
    assert sorted(await made(redis)) == [(n, attempt) for n in range(20) for attempt in range(2)]
    assert await redis.xlen(prompts.key) == 0


async def test_no_more_groups_are_under_way_than_slots_and_a_free_slot_is_filled(redis, log):
    started, finish = [], asyncio.Queue()

    async def make(prompt):
        started.append(prompt.group_id)
        await finish.get()
        return await make_at_once(prompt)

    await prompts_of(redis).publish(*(prompt(n) for n in range(6)))

    def started_are(count):
        async def check():
            return len(started) == count

        return check

    async with working(redis, log, make, concurrency=3):
        await until(started_are(3))
        assert (await redis.xpending(Keys(RUN).stream(PROMPTS), "rollout"))["pending"] == 3
        finish.put_nowait(None)
        await until(started_are(4))
        for _ in range(5):
            finish.put_nowait(None)
        await until_made(redis, 12)
    assert started == [0, 1, 2, 3, 4, 5]


async def test_a_group_whose_plugin_raises_is_counted_and_delivered_again(redis, log):
    tries = []

    async def make(prompt):
        tries.append(prompt.group_id)
        if len(tries) == 1:
            raise ZeroDivisionError("in the plugin")
        return await make_at_once(prompt)

    await prompts_of(redis).publish(prompt(7))
    async with working(redis, log, make, prompts_of(redis, lease_s=0.05)):
        await until_made(redis, 2)
    assert tries == [7, 7]
    (event,) = await events(redis)
    assert (event.event, event.detail["group"]) == ("group_retried", 7)
    assert "ZeroDivisionError: in the plugin" in event.detail["why"]
    assert (await Ledger(redis, Keys(RUN)).counters())["generate_retried"] == 1


async def test_a_group_that_does_not_finish_before_its_deadline_is_delivered_again(redis, log):
    tries = []

    async def make(prompt):
        tries.append(prompt.group_id)
        if len(tries) == 1:
            await asyncio.Event().wait()
        return await make_at_once(prompt)

    await prompts_of(redis).publish(prompt(7))
    async with working(redis, log, make, prompts_of(redis, lease_s=0.05), deadline_s=0.1):
        await until_made(redis, 2)
    assert "not finished within 0.1 s" in (await events(redis))[0].detail["why"]


@pytest.mark.parametrize(
    ("kind", "pinned", "counter"), [("train", None, "dropped:dead"), ("eval", 3, "eval_dropped:dead")]
)
async def test_a_group_that_never_succeeds_is_dead_and_returns_its_slot(redis, log, kind, pinned, counter):
    async def make(prompt):
        if prompt.group_id == 7:
            raise ZeroDivisionError("always")
        return await make_at_once(prompt)

    await prompts_of(redis).publish(prompt(6), prompt(7, kind, pinned), prompt(8))
    ledger = Ledger(redis, Keys(RUN))

    async def dropped():
        return (await ledger.counters()).get(counter) == 1

    async with working(redis, log, make, prompts_of(redis, lease_s=0.05, max_deliveries=2)):
        await until(dropped)
        await until_made(redis, 4)
        await until(lambda: _is_empty(redis))
    ((_, letter),) = await Stream[DeadLetter](redis, RUN, DEAD).read()
    assert "2 deliveries" in letter.error
    event = (await events(redis))[-1]
    assert (event.event, event.detail["reason"], event.detail["row"]) == ("group_dropped", "dead", 7)
    tally = await redis.hgetall(Keys(RUN).evaluation(3))
    assert tally == ({b"sums|done": b"1", b"sums|dropped": b"1"} if kind == "eval" else {})


async def test_a_group_that_can_never_be_generated_is_dropped_once_and_not_tried_again(redis, log):
    async def make(prompt):
        raise GroupRejected("the input is longer than the context")

    prompts = prompts_of(redis)
    await prompts.publish(prompt(7))
    async with working(redis, log, make):
        await until(lambda: _is_empty(redis))
    counters = await Ledger(redis, Keys(RUN)).counters()
    assert (counters["dropped"], counters["dropped:rejected"]) == (1, 1)
    (event,) = await events(redis)
    assert (event.detail["group"], event.detail["reason"]) == (7, "rejected")
    assert "longer than the context" in event.detail["why"]
    assert await redis.xlen(Keys(RUN).stream(DEAD)) == 0


async def test_a_rollout_that_no_entry_can_hold_drops_its_group(redis, log, monkeypatch):
    monkeypatch.setattr("shared.messages.MAX_ENTRY_BYTES", 500)

    async def make(prompt):
        made = await make_at_once(prompt)
        made[1].metadata["long"] = "x" * 1000
        return made

    await prompts_of(redis).publish(prompt(7))
    async with working(redis, log, make):
        await until(lambda: _is_empty(redis))
    assert (await Ledger(redis, Keys(RUN)).counters())["dropped:rejected"] == 1
    assert await made(redis) == []


async def test_stopping_lets_groups_in_flight_finish_and_leaves_the_others_to_be_delivered_again(
    redis, log, monkeypatch
):
    monkeypatch.setattr(generation_loop, "GRACE_S", 0.7)
    started, nearly = [], asyncio.Event()

    async def make(prompt):
        started.append(prompt.group_id)
        await (nearly.wait() if prompt.group_id == 0 else asyncio.Event().wait())
        return await make_at_once(prompt)

    async def both():
        return len(started) == 2

    await prompts_of(redis).publish(prompt(0), prompt(1))
    async with working(redis, log, make, prompts_of(redis, lease_s=0.05)) as task:
        await until(both)
        ending = asyncio.create_task(end(task))
        await asyncio.sleep(0)
        nearly.set()
        await ending
    assert await made(redis) == [(0, 0), (0, 1)]
    async with working(redis, log, make_at_once, prompts_of(redis, "another", lease_s=0.05)):
        await until_made(redis, 4)
    assert sorted(await made(redis)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


async def test_work_goes_on_when_redis_comes_back(tmp_path, log):
    port = free_port()
    command, url = embedded_redis.command(tmp_path, port, fsync="always"), embedded_redis.url(tmp_path, port)
    server = start(command)
    finish = asyncio.Event()

    async def make(prompt):
        await finish.wait()
        return await make_at_once(prompt)

    redis = await connect_checked(url, 10)
    try:
        await prompts_of(redis).publish(prompt(0), prompt(1))
        async with working(redis, log, make, concurrency=1):
            await until(lambda: _pending(redis))
            server.kill()
            server.wait(10)
            finish.set()
            server = start(command)
            await (await connect_checked(url, 10)).aclose()
            await until_made(redis, 4)
        assert sorted(set(await made(redis))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    finally:
        await redis.aclose()
        server.terminate()
        server.wait(10)


def start(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def _is_empty(redis):
    return await redis.xlen(Keys(RUN).stream(PROMPTS)) == 0


async def _pending(redis):
    try:
        return (await redis.xpending(Keys(RUN).stream(PROMPTS), "rollout"))["pending"] > 0
    except (*UNREACHABLE, ResponseError):
        return False


async def test_a_group_that_another_worker_has_is_left_to_it(redis, log):
    async def make(prompt):
        raise Superseded("taken over")

    prompts = prompts_of(redis)
    await prompts.open()
    await prompts.publish(prompt(7))
    async with working(redis, log, make):
        await until(lambda: _is_let_go(redis))
    assert await redis.xlen(prompts.key) == 1
    assert await events(redis) == []


async def test_a_group_that_is_settled_already_is_acknowledged(redis, log):
    async def make(prompt):
        raise Superseded("settled")

    await redis.setbit(Keys(RUN).emitted, 7, 1)
    await prompts_of(redis).publish(prompt(7))
    async with working(redis, log, make):
        await until(lambda: _is_empty(redis))


async def test_what_was_kept_of_a_group_is_forgotten_in_the_moment_in_which_it_is_forwarded(redis, log):
    await redis.set("{r1}:kept", "tokens")
    await prompts_of(redis).publish(prompt(7))
    loop = GenerationLoop(
        prompts_of(redis),
        Ledger(redis, Keys(RUN)),
        make_at_once,
        log,
        Limits(4, 10.0),
        AwaitRedis(log, RUN),
        lambda prompt: ["{r1}:kept"],
    )
    task = asyncio.create_task(loop.run())
    await until_made(redis, 2)
    assert not await redis.exists("{r1}:kept")
    await end(task)


async def test_a_worker_that_stops_lets_go_of_what_it_could_not_finish(redis, log, monkeypatch):
    monkeypatch.setattr(generation_loop, "GRACE_S", 0.05)
    begun = asyncio.Event()

    async def make(prompt):
        begun.set()
        await asyncio.Event().wait()

    await prompts_of(redis).publish(prompt(7))
    async with working(redis, log, make):
        await begun.wait()
    assert await _is_let_go(redis)


async def test_an_evaluation_prompt_that_cannot_be_decoded_is_counted_as_evaluation(redis, log):
    prompts = prompts_of(redis)
    await redis.xadd(prompts.key, {"m": b"?", "g": 7, "e": "3|sums"})
    async with working(redis, log, make_at_once):
        await until(lambda: _is_empty(redis))
    assert (await Ledger(redis, Keys(RUN)).counters())["eval_dropped:dead"] == 1
    assert await redis.hgetall(Keys(RUN).evaluation(3)) == {b"sums|done": b"1", b"sums|dropped": b"1"}


async def _is_let_go(redis):
    pending = await redis.xpending(Keys(RUN).stream(PROMPTS), "rollout")
    return [consumer["name"] for consumer in pending["consumers"]] == [b"~let-go"]
