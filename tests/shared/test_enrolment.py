"""What engines and the trainer leave in Redis about a version."""

import asyncio
from dataclasses import replace

from redis.asyncio import Redis

from shared.enrolment import KEPT_S, WAKES_S, Part, Word, await_parts, read_parts, say, write_answer, write_parts
from shared.topology import Keys

KEYS = Keys("r1")
PART = Part("enrolled", "r1-v3-ab", "life", 1, since=1.0)


async def test_the_parts_of_some_engines_are_read_without_those_of_others(redis: Redis) -> None:
    parts = {name: replace(PART, incarnation=name) for name in ("a", "b", "c")}
    await write_parts(redis, KEYS, 3, parts)
    assert await read_parts(redis, KEYS, 3) == parts
    some = await await_parts(redis, KEYS, 3, {"c", "a", "who-is-not-there"}, 0.01)
    assert some == {"a": parts["a"], "c": parts["c"]}
    assert await await_parts(redis, KEYS, 3, {"who-is-not-there"}, 0.01, everybodys=True) == parts
    assert await await_parts(redis, KEYS, 3, (), 0.01) == {}


async def test_an_answer_ends_the_wait_and_is_in_what_comes_back(redis: Redis) -> None:
    waiting = asyncio.create_task(await_parts(redis, KEYS, 3, ["a", "b"], 60))
    await write_answer(redis, KEYS, 3, "b", PART)
    assert await asyncio.wait_for(waiting, 10) == {"b": PART}


async def test_entries_that_only_wake_somebody_go_long_before_the_parts(redis: Redis) -> None:
    await write_answer(redis, KEYS, 3, "a", PART)
    await say(redis, KEYS, 3, ["a"], Word(PART.announcement, "send"))
    for key in (KEYS.answers(3, "a"), KEYS.told(3, "a")):
        assert 0 < await redis.ttl(key) <= WAKES_S
    for key in (KEYS.enrolled(3), KEYS.words(3)):
        assert WAKES_S < await redis.ttl(key) <= KEPT_S
