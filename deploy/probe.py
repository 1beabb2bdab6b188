"""A health address -> what the service says: healthy, unwell or nothing. http:// by GET, redis:// by PING."""

import asyncio
import sys
from typing import Literal
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

Answer = Literal["healthy", "unwell", "silent"]

PROBE_DEADLINE_S = 5.0


async def is_healthy(address: str) -> bool:
    """True if the service answers within PROBE_DEADLINE_S seconds that it is well."""
    return await ask(address) == "healthy"


async def ask(address: str) -> Answer:
    """One question: "unwell" is an answer too, such as that of a Redis whose disk is full."""
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            redis = urlsplit(address).scheme in ("redis", "rediss")
            return await (_ping(address) if redis else _get(address))
    except TimeoutError:
        return "silent"


async def _get(address: str) -> Answer:
    # loading the certificates of the web would take longer than the question, and be done every few seconds
    async with httpx.AsyncClient(timeout=PROBE_DEADLINE_S, trust_env=False, verify=False) as client:
        try:
            return "healthy" if (await client.get(address)).is_success else "unwell"
        except httpx.HTTPError:
            return "silent"


async def _ping(url: str) -> Answer:
    client = Redis.from_url(url, socket_timeout=PROBE_DEADLINE_S, socket_connect_timeout=PROBE_DEADLINE_S, retry=None)
    try:
        async with client:
            await client.ping()
            return "healthy"
    except (ResponseError, BusyLoadingError, AuthenticationError):
        return "unwell"
    except (RedisError, OSError):
        return "silent"


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_healthy(sys.argv[1])) else 1)
