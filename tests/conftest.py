"""Fixtures that every test may use: a real Redis server, and a client whose database is empty."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from deploy import embedded_redis
from shared.deployment import PREFIX
from shared.redis_connection import connect_checked

LOG_LINES, LOG_WIDTH = 8, 300


def pytest_configure() -> None:
    """Forget the settings of a deployment in whose shell the tests run: they would reach it, and stop it."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what the processes under its fixtures' `home` wrote last: there is nobody to look."""
    report = yield
    homes = [getattr(value, "home", None) for value in getattr(item, "funcargs", {}).values()] if report.failed else []
    for home in {home for home in homes if isinstance(home, Path)}:
        for file in sorted(home.rglob("*.log")):
            lines = file.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"end of {file.name}", "\n".join(line[:LOG_WIDTH] for line in lines)))
    return report


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = 10) -> None:
    """Wait for a condition; TimeoutError if it does not come true before the deadline."""
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis server that lives as long as the test session."""
    home: Path = tmp_path_factory.mktemp("redis_home")
    port = free_port()
    server = subprocess.Popen(embedded_redis.command(home, port), stdout=subprocess.DEVNULL)
    try:
        asyncio.run(_until_up(embedded_redis.url(home, port)))
        yield embedded_redis.url(home, port)
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client on an empty database."""
    client = await connect_checked(redis_url, 10)
    await client.flushdb()
    yield client
    await client.aclose()


async def _until_up(url: str) -> None:
    client = await connect_checked(url, 10)
    await client.aclose()
