"""`python -m services.gateway` as a process: first start, open streams at the stop, ports, an outage of Redis."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from deploy import embedded_redis
from services.gateway.dataset_store import DatasetStore
from services.gateway.feeder import Feeder
from shared.redis_connection import connect_checked
from shared.runs import Runs
from shared.scripts import Ledger
from shared.tasks import end
from shared.topology import Keys
from tests.conftest import until
from tests.services.gateway.gateway_cases import LOG, add, announce_all, released, run_settings, sums

START_DEADLINE_S = 60


class GatewayProcess:
    def __init__(self, home: Path, redis_url: str, **more: str) -> None:
        self.port = free_port()
        self.home = home
        settings = {"REDIS__URL": redis_url, "PATHS__HOME": str(home), "GATEWAY__PORT": str(self.port), **more}
        environ = {**os.environ, **{f"SLUICE_{name}": value for name, value in settings.items()}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that carries the key, once the gateway is up."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:

            async def healthy() -> bool:
                assert self.process.poll() is None, self.process.communicate()
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/healthz")).status_code == 200
                return False

            await until(healthy, START_DEADLINE_S)
            client.headers["Authorization"] = f"Bearer {(self.home / 'api_key').read_text().strip()}"
            yield client

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=15)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def processes() -> Iterator[list[GatewayProcess]]:
    started: list[GatewayProcess] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate(timeout=10)


async def test_it_shows_its_key_once_and_a_stop_ends_open_streams(
    redis: Redis, redis_url: str, tmp_path: Path, processes: list[GatewayProcess]
) -> None:
    await Runs(redis).create(run_settings())
    for number, shown in ((signal.SIGTERM, True), (signal.SIGINT, False)):
        processes.append(gateway := GatewayProcess(tmp_path / "home", redis_url))
        async with gateway.client() as client, client.stream("GET", "/v1/runs/r1/events") as events:
            assert (await anext(events.aiter_lines())).startswith("event:")
            code, out, err = await asyncio.to_thread(gateway.end, number)
        key = (tmp_path / "home" / "api_key").read_text().strip()
        assert (code, key in out) == (0, shown)
        assert key not in err
        assert "service_stopped" in err
        assert "Traceback" not in err


async def test_what_it_cannot_start_with_is_one_sentence_and_exit_code_1(
    redis_url: str, tmp_path: Path, processes: list[GatewayProcess]
) -> None:
    processes.append(first := GatewayProcess(tmp_path / "home", redis_url))
    async with first.client():
        pass
    cases = {
        "is in use": {"GATEWAY__PORT": str(first.port)},
        "gateway.api_key is not set": {"GATEWAY__HOST": "0.0.0.0"},
        "did not answer within": {
            "REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
            "REDIS__CONNECT_DEADLINE_S": "0.1",
        },
        "did you mean gateway.port": {"GATEWAY__PROT": "1"},
    }
    others = [GatewayProcess(tmp_path / "other", redis_url, **settings) for settings in cases.values()]
    processes += others
    for sentence, other in zip(cases, others, strict=True):
        out, err = await asyncio.to_thread(other.process.communicate, timeout=START_DEADLINE_S)
        assert (other.process.returncode, out, err.decode().count("\n")) == (1, b"", 1), err
        assert sentence in err.decode()
        assert not (tmp_path / "other" / "api_key").exists()


async def test_a_feeder_waits_out_an_outage_of_redis_and_goes_on_without_a_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    command = embedded_redis.command(tmp_path / "home", port, fsync="always")
    server = start_server(command)
    try:
        redis = await connect_checked(embedded_redis.url(tmp_path / "home", port), 10)
        store = DatasetStore(tmp_path / "datasets")
        await add(store, "sums", sums(50))
        await Runs(redis).create(run_settings())
        await announce_all(redis)
        ledger = Ledger(redis, Keys("r1"))
        await ledger.advance("weight_version", 0)
        feeder = asyncio.create_task(Feeder(redis, store, LOG, 1.0).feed())
        await until(lambda: has(redis, 4))
        server.kill()
        server.wait(10)
        await until(lambda: logged(caplog, "redis_unreachable"))
        assert not feeder.done()
        server = start_server(command)
        await ledger.advance("weight_version", 1)
        await until(lambda: has(redis, 8), 30)
        assert [p.group_id for p in await released(redis)] == list(range(8))
        await end(feeder)
        await redis.aclose()
    finally:
        server.kill()
        server.wait(10)


def start_server(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def logged(caplog: pytest.LogCaptureFixture, event: str) -> bool:
    return any(record.getMessage() == event for record in caplog.records)


async def has(redis: Redis, count: int) -> bool:
    return len(await released(redis)) >= count
