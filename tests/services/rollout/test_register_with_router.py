"""The engine's seat at a router whose answers the test writes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from services.rollout.register_with_router import RouterSeat
from shared.logs import Log
from shared.tasks import end
from tests.conftest import until

URL = "http://127.0.0.1:8310"


@dataclass
class Router:
    """Knows workers by url; `down` refuses connections; a new worker is healthy at once unless `slow`."""

    workers: dict[str, bool] = field(default_factory=dict)
    down: bool = False
    slow: bool = False
    calls: list[str] = field(default_factory=list)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        self.calls.append(request.method)
        if request.method == "POST":
            self.workers.setdefault(json.loads(request.content)["url"], not self.slow)
            return httpx.Response(202, json={})
        if request.method == "DELETE":
            self.workers.clear()
            return httpx.Response(202, json={})
        listed = [{"id": "1", "url": url, "is_healthy": healthy} for url, healthy in self.workers.items()]
        return httpx.Response(200, json={"workers": listed})


@contextlib.asynccontextmanager
async def seat_at(router: Router) -> AsyncIterator[RouterSeat]:
    seat = RouterSeat("http://router", URL, Log("engine"), httpx.MockTransport(router.answer))
    keeping = asyncio.create_task(seat.keep())
    try:
        yield seat
    finally:
        await end(keeping)
        await seat.close()


async def test_an_engine_is_not_listed_before_it_is_wanted() -> None:
    router = Router()
    async with seat_at(router) as seat:
        await asyncio.sleep(0)
        assert router.calls == []
        seat.want()
        await asyncio.wait_for(seat.seated(), 5)
    assert router.workers == {URL: True}


async def test_a_router_that_comes_up_late_or_again_gets_the_engine() -> None:
    router = Router(down=True)
    async with seat_at(router) as seat:
        seat.want()
        router.down = False
        await asyncio.wait_for(seat.seated(), 5)
        router.workers.clear()
        await until(lambda: _listed(router), 5)


async def test_the_seat_is_taken_only_when_the_router_finds_the_engine_healthy() -> None:
    router = Router(slow=True)
    async with seat_at(router) as seat:
        seat.want()
        await until(lambda: _listed(router), 5)
        waiting = asyncio.create_task(seat.seated())
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        router.workers[URL] = True
        await asyncio.wait_for(waiting, 5)


async def test_leaving_removes_the_worker_and_a_router_that_is_down_lists_nobody() -> None:
    router = Router()
    async with seat_at(router) as seat:
        seat.want()
        await asyncio.wait_for(seat.seated(), 5)
        assert await seat.leave()
        assert router.workers == {}
        router.down = True
        assert await seat.leave()


async def _listed(router: Router) -> bool:
    return URL in router.workers
