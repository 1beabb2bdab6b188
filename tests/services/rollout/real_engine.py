"""A real router and a real engine sidecar on free ports, with a run of a tiny model that is active."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from services.rollout.engine_arguments import plan_engine
from services.rollout.launch_engine import EngineProcess
from shared.event_lines import event_lines_async
from shared.redis_connection import connect
from shared.run_settings import EngineSettings, ModelSettings, RunSettings
from shared.runs import RunRecord, Runs
from shared.topology import ACTIVE

ROUTER = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--policy", "round_robin"]


@dataclass
class RealEngine:
    """What the tests of this folder share. Processes are ended by `close`, whatever a test did."""

    redis_url: str
    home: Path
    model: Path
    run: str = "r1"
    router_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    engine_port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def router_url(self) -> str:
        return f"http://127.0.0.1:{self.router_port}"

    def engine_url(self, index: int = 0) -> str:
        return f"http://127.0.0.1:{self.engine_port + index}"

    def connect(self) -> Redis:
        return connect(self.redis_url)

    async def activate(
        self, transport: str = "broadcast", lora: Mapping[str, Any] | None = None, **engine: Any
    ) -> RunRecord:
        """Make the run the active one, as the gateway does."""
        settings = RunSettings.model_validate(
            {
                "name": self.run,
                "model": {"path": str(self.model)},
                "data": {"datasets": [{"name": "none"}]},
                "trainer": {"steps": 100},
                "engine": {"device": "cpu", **engine},
                "weights": {"transport": transport},
                "lora": lora or {},
            }
        )
        redis = self.connect()
        runs = Runs(redis)
        await runs.create(settings)
        await runs.move(self.run, ("queued",), "starting")
        await redis.set(ACTIVE, self.run)
        record = await runs.get(self.run)
        await redis.aclose()
        assert record is not None
        return record

    def start_router(self) -> subprocess.Popen[bytes]:
        ports = ["--port", str(self.router_port), "--prometheus-host", "127.0.0.1"]
        return self._start([*ROUTER, *ports, "--prometheus-port", str(self.metrics_port)], "router")

    def start_sidecar(self, index: int = 0, urls: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """`urls`: engines of somebody else; the first of them has index 1."""
        command = [sys.executable, "-m", "services.rollout.engine", "--index", str(index)]
        return self._start(command, f"sidecar-{index}", {"SLUICE_ENGINE__URLS": json.dumps(urls)})

    def start_their_server(self, index: int) -> EngineProcess:
        """An SGLang server that no sidecar has launched."""
        plan = plan_engine(
            ModelSettings(path=str(self.model)), EngineSettings(device="cpu"), "127.0.0.1", self.engine_port + index, 0
        )
        return EngineProcess(plan, self.home / "theirs.log")

    def start_trainer(self, version: int, struck_by: signal.Signals) -> subprocess.Popen[bytes]:
        """A trainer that is struck when it begins to send this version."""
        arguments = [self.redis_url, self.run, str(self.model), str(version), str(int(struck_by))]
        return self._start([sys.executable, "-m", "tests.services.rollout.struck_trainer", *arguments], "trainer")

    async def listed(self) -> list[str]:
        """URLs of the workers that the router lists as healthy."""
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                workers = (await http.get(f"{self.router_url}/workers", timeout=5)).json()["workers"]
            except httpx.HTTPError:
                return []
        return [worker["url"] for worker in workers if worker["is_healthy"]]

    async def generate(self, prompt: list[int], tokens: int, url: str = "") -> dict[str, Any]:
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True}
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{url or self.router_url}/generate", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def generate_streaming(self, prompt: list[int], tokens: int, started: asyncio.Event) -> dict[str, Any]:
        """As generate; `started` is set when the first token has come."""
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "stream": True}
        last: dict[str, Any] = {}
        token_ids, logprobs = list[int](), list[Any]()
        async with (
            httpx.AsyncClient(trust_env=False, timeout=60) as http,
            http.stream("POST", f"{self.router_url}/generate", json=body) as answer,
        ):
            assert answer.status_code == 200
            async for line in event_lines_async(answer.aiter_bytes()):
                if line.startswith("data: {"):
                    started.set()
                    last = json.loads(line.removeprefix("data: "))
                    token_ids += last["output_ids"]  # our engines send what is new
                    logprobs += last["meta_info"]["output_token_logprobs"]
        last["meta_info"]["output_token_logprobs"] = logprobs
        return {**last, "output_ids": token_ids}

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(20)

    def _start(self, command: list[str], name: str, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **(more or {}),
            "SLUICE_REDIS__URL": self.redis_url,
            "SLUICE_ROUTER__PORT": str(self.router_port),
            "SLUICE_ENGINE__PORT": str(self.engine_port),
            "SLUICE_HEALTH__ENGINE_PORT": str(self.health_port),
            "SLUICE_PATHS__HOME": str(self.home),
        }
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def named(processes: list[psutil.Process], part: str) -> psutil.Process:
    return next(process for process in processes if part in " ".join(process.cmdline()))
