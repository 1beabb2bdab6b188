"""Fixtures of the client's tests: a real gateway on a real Redis, and the program `sluice` in this process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.free_ports import free_port
from sluice.cli.main import run
from sluice.cli.output import OUT
from sluice.client import Client

START_DEADLINE_S = 60
KEY = "a-key-for-tests"
NARROW = 80
DATABASE = 5
"""Its own, which no other test fills."""


@dataclass(frozen=True)
class Gateway:
    url: str
    home: Path


@pytest.fixture(scope="session")
def redis_url(redis_url: str) -> str:
    """The same server; the gateway outlives the tests, so its runs must not lie where other tests put theirs."""
    return f"{redis_url.rpartition('/')[0]}/{DATABASE}"


@pytest.fixture(scope="session")
def gateway(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway process of its own for the whole test session."""
    home, port = tmp_path_factory.mktemp("gateway"), free_port()
    settings = {
        "SLUICE_PATHS__HOME": str(home),
        "SLUICE_REDIS__URL": redis_url,
        "SLUICE_GATEWAY__PORT": str(port),
        "SLUICE_GATEWAY__API_KEY": KEY,
        "SLUICE_ROUTER__PORT": str(free_port()),
    }
    with (home / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=START_DEADLINE_S)
        with httpx.Client(transport=transport, timeout=START_DEADLINE_S) as client:
            assert client.get(f"{url}/healthz").is_success, (home / "gateway.log").read_text()
        yield Gateway(url, home)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url, KEY) as client:
        yield client


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Sluice = Callable[..., Outcome]


@pytest.fixture
def sluice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Sluice:
    """Run `sluice ARGUMENTS` in an empty folder and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sluice", *arguments])
        # what was set when the module was imported would count otherwise
        monkeypatch.setattr(OUT, "width", int(os.environ["COLUMNS"]))
        capsys.readouterr()
        code = 0
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def connected(sluice: Sluice, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Sluice:
    """`sluice` for which the gateway of the tests is the deployment's."""
    monkeypatch.setenv("SLUICE_GATEWAY__URL", gateway.url)
    monkeypatch.setenv("SLUICE_GATEWAY__API_KEY", KEY)
    return sluice


@pytest.fixture
def narrow(connected: Sluice, monkeypatch: pytest.MonkeyPatch) -> Sluice:
    """`connected` in a terminal of 80 columns, which no line of a table may exceed."""
    monkeypatch.setenv("COLUMNS", str(NARROW))
    monkeypatch.setattr(OUT, "width", NARROW)

    def call(*arguments: str) -> Outcome:
        outcome = connected(*arguments)
        assert max(map(len, outcome.out.splitlines()), default=0) <= NARROW or "--json" in arguments
        return outcome

    return call
