"""Fixtures of the gateway's tests: a dataset store, the application, and a client that carries the key."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis
from starlette.types import ASGIApp

from benchmarks.free_ports import free_port
from services.gateway.__main__ import Server
from services.gateway.app import build_app
from services.gateway.ask_router import open_router
from services.gateway.dataset_store import DatasetStore
from services.gateway.parts import Parts
from tests.services.gateway.gateway_cases import LOG

KEY = "the-key"
Serve = Callable[[ASGIApp], Awaitable[str]]


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


@pytest.fixture
async def parts(redis: Redis, store: DatasetStore, tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_router(f"http://127.0.0.1:{free_port()}") as router:
        yield Parts(redis, store, router, KEY, tmp_path / "runs")


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(parts, LOG))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as one:
        one.headers["Authorization"] = f"Bearer {KEY}"
        yield one


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve an application on a real port; returns its URL."""
    running: list[tuple[Server, asyncio.Task[None]]] = []

    async def start(app: ASGIApp) -> str:
        port = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = Server(config)
        running.append((server, asyncio.create_task(server.serve(sockets=[port]))))
        return f"http://127.0.0.1:{port.getsockname()[1]}"

    yield start
    for server, task in running:
        server.should_exit = True
        await task
