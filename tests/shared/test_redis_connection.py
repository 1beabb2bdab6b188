"""Refusals of servers that would lose samples or are not there."""

import pytest
from redis.asyncio import Redis

from shared.errors import SettingsError, SluiceError
from shared.redis_connection import UNREACHABLE, connect, connect_checked, hide_password


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(SluiceError, match=r"Redis at redis://\*\*\*@127.0.0.1:9/0 did not answer within 0.1 s"):
        await connect_checked("redis://:secret@127.0.0.1:9/0", 0.1)


async def test_a_wrong_password_is_refused_at_once(redis_url: str) -> None:
    wrong = "redis://:wrong@" + redis_url.partition("@")[2]
    with pytest.raises(SluiceError, match="refused the password"):
        await connect_checked(wrong, 5)


async def test_an_evicting_server_is_refused(redis: Redis, redis_url: str) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SluiceError, match="set maxmemory-policy noeviction"):
            await connect_checked(redis_url, 5)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="write redis://"):
        await connect_checked("http://127.0.0.1", 1)


def test_passwords_are_hidden() -> None:
    assert hide_password("redis://:secret@h:1/0") == "redis://***@h:1/0"


async def test_a_full_server_counts_as_unreachable_also_inside_scripts_and_transactions(
    redis: Redis,
) -> None:
    script = redis.register_script("return redis.call('SET', KEYS[1], 'x')")
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(UNREACHABLE):
            await redis.set("a", "b")
        with pytest.raises(UNREACHABLE):
            await script(keys=["b"])
        async with redis.pipeline(transaction=True) as pipe:
            pipe.set("a", "b")
            with pytest.raises(UNREACHABLE):
                await pipe.execute()
    finally:
        await redis.config_set("maxmemory", "0")
    assert await redis.keys() == []


async def test_a_read_only_server_counts_as_unreachable(redis: Redis) -> None:
    script = redis.register_script("return redis.call('SET', KEYS[1], 'x')")
    await redis.replicaof("127.0.0.1", "9")
    try:
        with pytest.raises(UNREACHABLE):
            await redis.set("a", "b")
        with pytest.raises(UNREACHABLE):
            await script(keys=["b"])
    finally:
        await redis.replicaof("NO", "ONE")


def test_a_failing_disk_counts_as_unreachable_and_a_wrong_command_does_not() -> None:
    (parser,) = {type(connect("redis://h:1/0").connection_pool.make_connection()._parser)}
    assert isinstance(parser.parse_error("MISCONF Errors writing to the AOF file: No space left"), UNREACHABLE)
    assert not isinstance(parser.parse_error("ERR unknown command"), UNREACHABLE)
