"""A Redis URL -> a checked connection: new enough, never evicting, reached before a deadline."""

import asyncio
import re
import time
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import SettingsError, SluiceError


class RedisUnwritable(ResponseError):
    """Redis answers and takes no writes now: full, read-only, or its disk is failing."""


UNREACHABLE = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    TryAgainError,
    NoScriptError,  # a server that restarted forgot its scripts; to repeat the call sends them again
    OutOfMemoryError,
    ReadOnlyError,
    RedisUnwritable,
)
"""What Redis raises while it is down, restarting, out of reach, full or read-only; to wait and try again is right."""
REFUSALS = ("OOM command not allowed", "MISCONF ", "READONLY You can't write")
"""How Redis refuses a write, also in the middle of what it says about a script."""

MINIMUM_VERSION = (6, 2)
READ_TIMEOUT_S = 60.0


_DefaultParser: Any = type(Connection(protocol=2)._parser)  # pyright: ignore[reportPrivateUsage]  with hiredis, another


class _Parser(_DefaultParser):
    """Tells refused writes from wrong commands, also where a script ran into them."""

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        if any(refusal in response for refusal in REFUSALS):
            return RedisUnwritable(response)
        return super().parse_error(response)


def connect(url: str) -> Redis:
    """A client for the URL; nothing is sent yet. Blocking reads must be shorter than READ_TIMEOUT_S."""
    if not url.startswith(("redis://", "rediss://")):
        raise SettingsError(f"redis.url is {url!r}; write redis://:password@host:port/0, or rediss:// for TLS")
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), retries=5)
    return Redis.from_url(
        url,
        protocol=2,
        parser_class=_Parser,
        socket_timeout=READ_TIMEOUT_S,
        socket_connect_timeout=5,
        retry=retry,
        health_check_interval=15,
    )


async def connect_checked(url: str, deadline_s: float) -> Redis:
    """A client whose server answered, is Redis 6.2 or newer (or Valkey) and does not evict.

    Raises:
        SluiceError: no answer within `deadline_s` seconds, wrong password, too old, or an evicting policy.
    """
    redis = connect(url)
    try:
        await _wait_for(redis, hide_password(url), deadline_s)
        await _check(redis, hide_password(url))
    except UNREACHABLE as error:
        await redis.aclose()
        raise SluiceError(f"Redis at {hide_password(url)} went away ({error}); start it again") from error
    except SluiceError:
        await redis.aclose()
        raise
    return redis


def hide_password(url: str) -> str:
    return re.sub(r"://[^@/]*@", "://***@", url)


async def _wait_for(redis: Redis, name: str, deadline_s: float) -> None:
    until = time.monotonic() + deadline_s
    while True:
        try:
            await redis.ping()
            return
        except AuthenticationError as error:
            raise SluiceError(f"Redis at {name} refused the password; correct redis.url") from error
        except UNREACHABLE as error:
            if time.monotonic() > until:
                raise SluiceError(
                    f"Redis at {name} did not answer within {deadline_s:g} s ({error}); start it or correct redis.url"
                ) from error
            await asyncio.sleep(0.2)
        except ResponseError as error:
            raise SluiceError(f"Redis at {name} refused a ping ({error}); correct redis.url") from error


async def _check(redis: Redis, name: str) -> None:
    server: dict[str, str] = await redis.info("server")
    version = tuple(int(part) for part in str(server["redis_version"]).split(".")[:2])
    if version < MINIMUM_VERSION:
        raise SluiceError(f"Redis at {name} is {server['redis_version']}; run 6.2 or newer, or Valkey")
    try:
        policy = await redis.config_get("maxmemory-policy")
    except RedisError:
        return  # managed servers forbid CONFIG; then the operator answers for the policy
    found = policy.get("maxmemory-policy", "noeviction")
    if found != "noeviction":
        raise SluiceError(f"Redis at {name} evicts ({found}), which loses samples; set maxmemory-policy noeviction")
