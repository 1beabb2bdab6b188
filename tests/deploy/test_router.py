"""The real router with our settings: starts without engines, bears a paused engine, survives a dead one."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from benchmarks.free_ports import free_port
from deploy.probe import is_healthy
from deploy.services import services_of
from shared.deployment import load_deployment
from tests.conftest import until

ENGINE = Path(__file__).with_name("fake_engine.py")
pytestmark = pytest.mark.slow


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real router that has no engine yet."""
    ports = {"port": free_port(), "metrics_port": free_port()}
    deployment = load_deployment(environ={}, overrides={"paths": {"home": str(tmp_path)}, "router": ports})
    service = next(service for service in services_of(deployment) if service.name == "router")
    process = await asyncio.create_subprocess_exec(*service.command)
    try:
        await until(lambda: is_healthy(service.health), 60)
        async with httpx.AsyncClient(base_url=deployment.router_url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@pytest.fixture
async def engines(router: httpx.AsyncClient) -> AsyncIterator[list["Engine"]]:
    """Two small engines, registered."""
    started = [await Engine.start(), await Engine.start()]
    for engine in started:
        assert (await router.post("/workers", json={"url": engine.url})).status_code == 202

    async def both_serve() -> bool:
        workers = (await router.get("/workers")).json()["workers"]
        return [worker["is_healthy"] for worker in workers] == [True, True]

    await until(both_serve, 30)
    yield started
    for engine in started:
        await engine.kill()


class Engine:
    """A process that speaks as much of SGLang's protocol as the router asks for."""

    def __init__(self, url: str, process: asyncio.subprocess.Process) -> None:
        self.url, self._process = url, process

    @classmethod
    async def start(cls) -> "Engine":
        port = free_port()
        process = await asyncio.create_subprocess_exec(sys.executable, str(ENGINE), str(port))
        await until(lambda: is_healthy(f"http://127.0.0.1:{port}/health"), 30)
        return cls(f"http://127.0.0.1:{port}", process)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def tell(self, state: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{self.url}/state/{state}")


async def _generate(router: httpx.AsyncClient, count: int) -> list[int]:
    asked = (router.post("/generate", json={"text": "a"}) for _ in range(count))
    return [answer.status_code for answer in await asyncio.gather(*asked)]


async def test_requests_wait_for_a_paused_engine_that_answers_no_health_check(
    router: httpx.AsyncClient, engines: list[Engine]
) -> None:
    for engine in engines:
        await engine.tell("paused")
    waiting = asyncio.create_task(_generate(router, 16))
    # longer than one health check and its deadline
    assert await asyncio.wait({waiting}, timeout=12) == (set(), {waiting})
    for engine in engines:
        await engine.tell("serving")
    assert await waiting == [200] * 16


async def test_a_clients_malformed_requests_do_not_lock_others_out(
    router: httpx.AsyncClient, engines: list[Engine]
) -> None:
    for engine in engines:
        await engine.tell("refusing")
    assert await _generate(router, 40) == [400] * 40
    for engine in engines:
        await engine.tell("serving")
    assert await _generate(router, 8) == [200] * 8


async def test_a_dead_engines_requests_go_to_another_one(router: httpx.AsyncClient, engines: list[Engine]) -> None:
    await engines[0].kill()
    assert await _generate(router, 60) == [200] * 60
