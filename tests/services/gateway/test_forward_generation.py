"""/generate and /v1/chat/completions: forwarded as they are, streamed, without the key; errors without engines."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from services.gateway.app import build_app
from services.gateway.ask_router import open_router
from services.gateway.parts import Parts
from tests.services.gateway.conftest import KEY, Serve
from tests.services.gateway.gateway_cases import LOG


class FakeRouter:
    """Stands in for sglang-router at the network edge: echoes, streams slowly, or has no engine."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.app = FastAPI()
        self.app.add_api_route("/generate", self.generate, methods=["POST"])
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        self.app.add_api_route("/workers", self.workers)

    async def generate(self, request: Request) -> Response:
        self.headers = dict(request.headers)
        data = await request.json()
        if data.get("text") == "nobody":
            return JSONResponse({"error": {"code": "no_available_workers"}}, 503)
        return JSONResponse({"echo": data, "query": str(request.query_params)}, 400 if data.get("bad") else 200)

    async def chat(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield b"data: one\n\n"
                await self.go_on.wait()
                yield b"data: two\n\n"
            finally:
                self.left.set()

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def workers(self) -> dict[str, list[str]]:
        return {"workers": ["one", "two"]}


@pytest.fixture
def fake() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
async def gateway(parts: Parts, serve: Serve, fake: FakeRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with open_router(await serve(fake.app)) as router:
        url = await serve(build_app(Parts(parts.redis, parts.datasets, router, KEY), LOG))
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield client


async def test_body_query_and_status_pass_through_and_the_key_does_not(
    gateway: httpx.AsyncClient, fake: FakeRouter
) -> None:
    answer = await gateway.post("/generate?x=1&x=2", json={"text": "3+4="}, headers={"x-mine": "kept"})
    assert (answer.status_code, answer.json()) == (200, {"echo": {"text": "3+4="}, "query": "x=1&x=2"})
    assert "authorization" not in fake.headers
    assert fake.headers["x-mine"] == "kept"
    bad = await gateway.post("/generate", json={"bad": True})
    assert (bad.status_code, bad.json()["echo"]) == (400, {"bad": True})


async def test_an_answer_is_streamed_chunk_by_chunk(gateway: httpx.AsyncClient, fake: FakeRouter) -> None:
    async with asyncio.timeout(5), gateway.stream("POST", "/v1/chat/completions", json={}) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: one"
        fake.go_on.set()  # only now does the router send the rest
        assert [line async for line in lines if line] == ["data: two"]


async def test_a_client_that_leaves_frees_the_router(gateway: httpx.AsyncClient, fake: FakeRouter) -> None:
    async with gateway.stream("POST", "/v1/chat/completions", json={}) as answer:
        await anext(answer.aiter_lines())
    async with asyncio.timeout(5):
        await fake.left.wait()


async def test_without_engines_the_error_says_so(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.post("/generate", json={"text": "nobody"})
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("no engine answers behind the router")
    assert "no_available_workers" in answer.json()["error"]["details"][0]


async def test_without_a_router_the_error_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate", json={"text": "a"})
    assert answer.status_code == 502
    assert "is not there" in answer.json()["error"]["message"]


async def test_status_counts_the_engines_behind_the_router(gateway: httpx.AsyncClient) -> None:
    assert (await gateway.get("/v1/status")).json()["router"] == {"reachable": True, "workers": 2}
