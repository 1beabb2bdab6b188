"""A port -> a Redis server of the benchmark's own, which ends with it."""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from deploy import embedded_redis
from shared.redis_connection import connect_checked

START_S, END_S = 20, 10


@contextlib.asynccontextmanager
async def own_redis(port: int = 0) -> AsyncGenerator[Redis]:
    """A client of a fresh server, append-only file on, synced every second; port 0 takes a free one."""
    async with own_redis_url(port) as url:
        client = await connect_checked(url, START_S)
        yield client
        await client.aclose()


@contextlib.asynccontextmanager
async def own_redis_url(port: int = 0) -> AsyncGenerator[str]:
    """The same server's URL, for several processes."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        command = embedded_redis.command(home, port, "everysec")
        server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        try:
            yield embedded_redis.url(home, port)
        finally:
            server.terminate()
            await asyncio.wait_for(server.wait(), END_S)
