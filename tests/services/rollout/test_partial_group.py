"""The record of a group in a real Redis: stored as it grows, fenced, resumed by whoever takes the group over."""

import asyncio

import pytest

from services.rollout import partial_group
from services.rollout.partial_group import Partials
from services.rollout.read_answers import Sample
from services.rollout.refusals import GroupRejected, Superseded
from shared.await_redis import AwaitRedis
from shared.messages import Event, Prompt
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, Keys
from tests.conftest import until

KEYS = Keys("r1")


@pytest.fixture
def partials(redis, log):
    def make(tokens=4, seconds=60.0, deadline_s=60.0):
        return Partials(Ledger(redis, KEYS), log, "w", tokens, seconds, deadline_s, AwaitRedis(log, KEYS.run))

    return make


def prompt(group_size=2) -> Prompt:
    return Prompt(7, "train", "sums", 1, "1+1=", group_size)


def grow(attempt, reply, count, finish=""):
    attempt.take(reply, Sample([5] * count, [-1.0] * count, [(3, count)], finish))


def stored(redis, chunks):
    async def check():
        return await redis.xlen(KEYS.partial(7)) == chunks

    return until(check)


async def recorded(partials) -> list[int]:
    return [attempt.tokens for attempt in (await partials().take_over(prompt())).attempts]


async def test_an_attempt_is_stored_every_few_tokens_and_at_its_end(redis, partials):
    group = await partials(tokens=4).take_over(prompt())

    async def work():
        first, second = (attempt.next_reply() for attempt in group.attempts)
        grow(group.attempts[0], first, 3)
        grow(group.attempts[0], first, 1)
        await stored(redis, 1)
        grow(group.attempts[1], second, 2, "stop")
        await stored(redis, 2)
        grow(group.attempts[0], first, 3)
        return "done"

    assert await group.keep(work()) == "done"
    assert await recorded(partials) == [4, 2]


async def test_an_attempt_is_stored_after_some_seconds_though_it_is_slow(redis, partials):
    group = await partials(tokens=1000, seconds=0.05).take_over(prompt())

    async def work():
        grow(group.attempts[0], group.attempts[0].next_reply(), 1)
        await stored(redis, 1)

    await group.keep(work())


@pytest.mark.parametrize("how", ["raises", "times out", "is cancelled again and again"])
async def test_what_there_is_when_the_work_ends_early_is_stored(redis, partials, how):
    group = await partials(tokens=1000).take_over(prompt())
    begun = asyncio.Event()

    async def work():
        grow(group.attempts[1], group.attempts[1].next_reply(), 3)
        begun.set()
        if how == "raises":
            raise ZeroDivisionError
        await asyncio.Event().wait()

    async def keep():
        async with asyncio.timeout(0.05 if how == "times out" else 10):
            await group.keep(work())

    task = asyncio.create_task(keep())
    await begun.wait()
    if how.startswith("is"):
        task.cancel()
        await asyncio.sleep(0)
        await end(task)
    else:
        with pytest.raises(ZeroDivisionError if how == "raises" else TimeoutError):
            await task
    assert await recorded(partials) == [0, 3]


async def test_a_group_may_take_long_as_long_as_there_is_something_new(redis, partials):
    group = await partials(tokens=1000, deadline_s=0.2).take_over(prompt())

    async def work():
        reply = group.attempts[0].next_reply()
        for _ in range(10):
            grow(group.attempts[0], reply, 1)
            await asyncio.sleep(0.05)
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="nothing new within"):
        await group.keep(work())
    assert await recorded(partials) == [10, 0]


async def test_a_group_that_is_rejected_is_not_stored(redis, partials):
    group = await partials(tokens=1000).take_over(prompt())

    async def work():
        grow(group.attempts[1], group.attempts[1].next_reply(), 3)
        raise GroupRejected("no")

    with pytest.raises(GroupRejected):
        await group.keep(work())
    assert await recorded(partials) == [0, 0]


async def test_a_worker_whose_group_was_taken_over_stops_and_changes_nothing(redis, partials):
    zombie = await partials().take_over(prompt())
    reply = zombie.attempts[0].next_reply()

    async def work():
        grow(zombie.attempts[0], reply, 4)
        await stored(redis, 1)
        heir = await partials().take_over(prompt())
        assert heir.attempts[0].tokens == 4
        grow(zombie.attempts[0], reply, 4)
        await asyncio.Event().wait()

    with pytest.raises(Superseded):
        await zombie.keep(work())
    assert await recorded(partials) == [4, 0]


async def test_a_group_that_is_settled_is_not_stored_any_more(redis, partials):
    group = await partials().take_over(prompt())
    await redis.setbit(KEYS.emitted, 7, 1)

    async def work():
        grow(group.attempts[0], group.attempts[0].next_reply(), 4)
        await asyncio.Event().wait()

    with pytest.raises(Superseded):
        await group.keep(work())


async def test_after_redis_was_away_all_of_it_is_stored_again(redis, partials, monkeypatch):
    monkeypatch.setattr(partial_group, "WAIT_S", 0.01)
    given = partials()
    group = await given.take_over(prompt())
    append, away = Ledger.append_chunks, [ConnectionError("away")] * 3

    async def unreachable(ledger, group_id, owner, chunks):
        if group.tokens > 4 and away:
            from redis.exceptions import ConnectionError as Away

            away.pop()
            await redis.xtrim(KEYS.partial(7), maxlen=0, approximate=False)  # it comes back without its last writes
            raise Away("gone")
        return await append(ledger, group_id, owner, chunks)

    monkeypatch.setattr(Ledger, "append_chunks", unreachable)

    async def work():
        reply = group.attempts[0].next_reply()
        grow(group.attempts[0], reply, 4)
        await stored(redis, 1)
        grow(group.attempts[0], reply, 4)
        await stored(redis, 3)  # two cuts to nothing, and all tokens

    await group.keep(work())
    assert await recorded(partials) == [8, 0]


async def test_an_unreadable_chunk_costs_what_comes_after_it_and_no_more(redis, partials):
    group = await partials(tokens=1).take_over(prompt())

    async def work():
        reply = group.attempts[0].next_reply()
        grow(group.attempts[0], reply, 4)
        await stored(redis, 1)
        await redis.xadd(KEYS.partial(7), {"m": b"?"})
        grow(group.attempts[0], reply, 4)
        await stored(redis, 3)

    await group.keep(work())
    assert await recorded(partials) == [8, 0]


async def test_a_function_that_differs_from_its_record_is_an_event(redis, partials):
    group = await partials(tokens=1).take_over(prompt())

    async def first():
        group.attempts[1].add([1, 2])
        await stored(redis, 1)

    await group.keep(first())
    again = await partials(tokens=1).take_over(prompt())

    async def second():
        again.attempts[1].add([1, 3])
        await stored(redis, 3)

    await again.keep(second())
    (event,) = [event for _, event in await Stream[Event](redis, "r1", EVENTS).read()]
    assert (event.event, event.detail) == ("partial_mismatch", {"group": 7, "attempt": 1})
