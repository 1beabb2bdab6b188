"""A health address -> is the service well? http:// by GET, redis:// by PING."""

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

PROBE_DEADLINE_S = 5.0


async def is_healthy(address: str) -> bool:
    """True if the service answers within PROBE_DEADLINE_S seconds that it is well."""
    if urlsplit(address).scheme in ("redis", "rediss"):
        return await _answers_ping(address)
    try:
        async with httpx.AsyncClient(timeout=PROBE_DEADLINE_S, trust_env=False) as client:
            return (await client.get(address)).is_success
    except httpx.HTTPError:
        return False


async def _answers_ping(url: str) -> bool:
    client = Redis.from_url(url, socket_timeout=PROBE_DEADLINE_S, socket_connect_timeout=PROBE_DEADLINE_S, retry=None)
    with contextlib.suppress(RedisError, OSError, asyncio.TimeoutError):
        async with client:
            await client.ping()
            return True
    return False


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_healthy(sys.argv[1])) else 1)
