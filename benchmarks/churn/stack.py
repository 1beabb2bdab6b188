"""A folder -> Redis, the router and engine sidecars that are kept running in it, with a run that is active."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from benchmarks.chaos.stack import merged
from benchmarks.free_ports import ROW, free_ports
from deploy import embedded_redis
from deploy.keep_running import Condition, Keeper
from deploy.process import descendants
from deploy.services import Service, children_environment, services_of
from services.trainer.tiny_model import write_tiny_model
from shared.deployment import Deployment, load_deployment
from shared.redis_connection import connect_checked
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.tasks import end
from shared.topology import ACTIVE

RUN = "churn"
START_S, CALL_S = 120.0, 5.0
CONTEXT = 2048


@dataclass
class Stack:
    """What runs. An engine runs from the moment in which `start_engine` is called."""

    deployment: Deployment
    settings: RunSettings
    redis: Redis
    keepers: dict[str, Keeper]
    tasks: dict[str, "asyncio.Task[None]"]

    def start_engine(self, index: int) -> None:
        """Start a sidecar, which starts its engine."""
        name = f"engine-{index}"
        self.tasks[name] = asyncio.create_task(self.keepers[name].run())

    def engine_url(self, index: int) -> str:
        engine = self.deployment.engine
        return f"http://{engine.host}:{engine.port + index}"

    def engine_processes(self, index: int) -> list[int]:
        """Process ids of the engine itself, the server first; empty while there is none."""
        pid = self.keepers[f"engine-{index}"].condition.pid
        return sorted(descendants(pid)) if pid else []

    async def served_by(self, index: int) -> str | None:
        """The version that an engine serves; None if it does not answer."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=CALL_S) as http:
                answer = await http.get(f"{self.engine_url(index)}/model_info")
            return str(answer.json()["weight_version"])
        except httpx.HTTPError:
            return None

    async def listed(self) -> list[str]:
        """Addresses of the engines that the router sends requests to."""
        async with httpx.AsyncClient(trust_env=False, timeout=CALL_S) as http:
            workers = (await http.get(f"{self.deployment.router_url}/workers")).json()["workers"]
        return [worker["url"] for worker in workers if worker["is_healthy"]]


@contextlib.asynccontextmanager
async def running_stack(home: Path, engines: int, run: dict[str, Any], seed: int) -> AsyncGenerator[Stack]:
    """Everything but the engines is up when it begins, and nothing is left when it ends."""
    model = home / "model"
    write_tiny_model(model, seed)
    assert engines <= ROW, f"write --engines {ROW} or fewer"
    overrides = merged(free_ports(), {"paths": {"home": str(home)}, "engine": {"count": engines}})
    deployment = load_deployment(environ={}, overrides=overrides)
    (home / "logs").mkdir()
    environment = children_environment(deployment)
    wanted = [each for each in services_of(deployment) if each.name in ("redis", "router") or _is_engine(each)]
    keepers = {each.name: Keeper(each, environment, home / "logs" / f"{each.name}.log", _unheard) for each in wanted}
    tasks = {name: asyncio.create_task(keepers[name].run()) for name in ("redis", "router")}
    try:
        for name in tasks:
            await asyncio.wait_for(keepers[name].healthy.wait(), START_S)
        redis = await connect_checked(embedded_redis.url(home, deployment.redis.port), START_S)
        settings = await _activate(redis, {"name": RUN, "model": {"path": str(model)}, **run})
        yield Stack(deployment, settings, redis, keepers, tasks)
        await redis.aclose()
    finally:
        await end(*tasks.values())
        for name in reversed(tasks):
            await keepers[name].stop()


async def _activate(redis: Redis, tree: dict[str, Any]) -> RunSettings:
    """Make the run the active one, as the gateway does."""
    settings, runs = RunSettings.model_validate(tree), Runs(redis)
    await runs.create(settings)
    await runs.move(settings.name, ("queued",), "starting")
    await redis.set(ACTIVE, settings.name)
    return settings


def _is_engine(service: Service) -> bool:
    return service.name.startswith("engine-")


def _unheard(condition: Condition) -> None:
    """Nobody waits for a report: what matters is what requests see."""
