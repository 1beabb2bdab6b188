"""One deployment's settings -> the list of its services: command, ports, environment, health check, dependencies."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from deploy import embedded_redis
from shared.deployment import PREFIX, Deployment
from shared.settings import Tree

PAUSE_S = 180
"""Longest silence of an engine that the router bears; a weight update may pause one for 120 seconds."""
ROUTER_PROBE_S = 5
REDIS_LOAD_S = 1800
"""A large append-only file takes minutes to load; a server that was killed meanwhile would begin anew."""


@dataclass(frozen=True, slots=True)
class PortUse:
    """One port that a service listens on, and the setting that chooses it."""

    setting: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """One process of a deployment."""

    name: str
    command: tuple[str, ...]
    health: str
    """http:// address that answers 200 while the service is well, or redis:// address that answers a PING."""
    ports: tuple[PortUse, ...]
    needs: tuple[str, ...] = ()
    """Services that must be healthy before this one starts."""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """Variables beyond the deployment's settings."""
    start_deadline_s: float = 120
    """Seconds from its start to the first healthy answer."""
    stop_grace_s: float = 15
    """Seconds that it has to end by itself after SIGTERM."""


def services_of(deployment: Deployment) -> list[Service]:
    """The services in an order in which each comes after those it needs; Redis only where none is configured."""
    embedded = [] if deployment.redis.url else [_redis(deployment)]
    needs = tuple(service.name for service in embedded)
    return [
        *embedded,
        _router(deployment),
        _gateway(deployment, needs),
        _reward(deployment, needs),
        _rollout(deployment, needs),
        _trainer(deployment, needs),
        *(_engine(deployment, needs, index) for index in range(deployment.engine.sidecars)),
    ]


def ports_of(deployment: Deployment) -> dict[str, tuple[PortUse, ...]]:
    """The ports of each service, by its name. Unlike `services_of` it writes no file."""
    gateway, router, health, engine = deployment.gateway, deployment.router, deployment.health, deployment.engine
    ports: dict[str, tuple[PortUse, ...]] = {
        "gateway": (PortUse("gateway.port", gateway.host, gateway.port),),
        "router": (
            PortUse("router.port", router.host, router.port),
            PortUse("router.metrics_port", router.host, router.metrics_port),
        ),
        "trainer": (PortUse("health.trainer_port", health.host, health.trainer_port),),
        "rollout": (PortUse("health.rollout_port", health.host, health.rollout_port),),
        "reward": (PortUse("health.reward_port", health.host, health.reward_port),),
    }
    for index in range(engine.sidecars):
        own = [PortUse("engine.port", engine.host, engine.port + index)] if index < engine.count else []
        ports[f"engine-{index}"] = (PortUse("health.engine_port", health.host, health.engine_port + index), *own)
    if not deployment.redis.url:
        ports["redis"] = (PortUse("redis.port", "127.0.0.1", deployment.redis.port),)
    return ports


def settings_environment(deployment: Deployment) -> dict[str, str]:
    """Every setting as a SLUICE_SECTION__NAME variable, so that a child sees exactly this deployment."""
    tree = deployment.model_dump(mode="json")
    tree["paths"]["home"] = str(deployment.paths.home.absolute())
    return {f"{PREFIX}{name}": json.dumps(value, ensure_ascii=False) for name, value in _leaves(tree)}


def children_environment(deployment: Deployment) -> dict[str, str]:
    """The settings for the services, with the address of the embedded Redis where none is configured."""
    if deployment.redis.url:
        return settings_environment(deployment)
    url = embedded_redis.url(deployment.paths.home, deployment.redis.port)
    redis = deployment.redis.model_copy(update={"url": url})
    return settings_environment(deployment.model_copy(update={"redis": redis}))


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = f"{prefix}__{name.upper()}" if prefix else name.upper()
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def reachable(host: str) -> str:
    """The address to ask on this machine a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)


def local_gateway_url(deployment: Deployment) -> str:
    """Where clients on this machine reach the gateway."""
    settings = deployment.gateway
    return settings.url or f"http://{reachable(settings.host)}:{settings.port}"


def _redis(deployment: Deployment) -> Service:
    home, port = deployment.paths.home, deployment.redis.port
    command, url = tuple(embedded_redis.command(home, port, deployment.redis.fsync)), embedded_redis.url(home, port)
    return Service("redis", command, url, ports_of(deployment)["redis"], start_deadline_s=REDIS_LOAD_S)


def _router(deployment: Deployment) -> Service:
    settings, ports = deployment.router, ports_of(deployment)["router"]
    command = _module("sglang_router.launch_router", *router_arguments(deployment))
    return Service("router", command, f"http://{reachable(settings.host)}:{settings.port}/liveness", ports)


def router_arguments(deployment: Deployment) -> list[str]:
    """Command-line arguments of sglang-router, which starts without engines.

    A paused engine answers no health check, so it is thrown out only after PAUSE_S. The circuit breaker is off: it
    counts answers of status 400, so ten malformed requests of one client would lock every client out. A dead engine
    costs a refused connection, which the router tries elsewhere. How long a request may take is the client's affair.
    """
    settings = deployment.router
    values: dict[str, object] = {
        "host": settings.host,
        "port": settings.port,
        "prometheus-host": settings.host,
        "prometheus-port": settings.metrics_port,
        "policy": settings.policy,
        "log-level": "warn",
        "request-timeout-secs": 86400,
        "worker-startup-check-interval": 1,
        "health-check-interval-secs": ROUTER_PROBE_S,
        "health-failure-threshold": PAUSE_S // ROUTER_PROBE_S,
        "health-success-threshold": 1,
        "retry-max-retries": 10,
        "retry-max-backoff-ms": 2000,
        "shutdown-grace-period-secs": 5,
    }
    return [
        *(part for name, value in values.items() for part in (f"--{name}", str(value))),
        "--disable-circuit-breaker",
    ]


def _gateway(deployment: Deployment, needs: tuple[str, ...]) -> Service:
    return _service("gateway", _module("services.gateway"), deployment, needs)


def _reward(deployment: Deployment, needs: tuple[str, ...]) -> Service:
    return _service("reward", _module("services.reward"), deployment, needs)


def _rollout(deployment: Deployment, needs: tuple[str, ...]) -> Service:
    return _service("rollout", _module("services.rollout"), deployment, (*needs, "router"))


def _trainer(deployment: Deployment, needs: tuple[str, ...]) -> Service:
    processes, module = deployment.trainer.processes, "services.trainer"
    if processes == 1:
        return _service("trainer", _module(module), deployment, needs)
    # on several nodes torchrun is started by hand, with the same module
    ranks = ("--standalone", "--nproc-per-node", str(processes), "--max-restarts", "0")
    service = _service("trainer", _module("torch.distributed.run", *ranks, "-m", module), deployment, needs)
    return replace(service, stop_grace_s=45)  # torchrun itself gives its processes thirty seconds


def _engine(deployment: Deployment, needs: tuple[str, ...], index: int) -> Service:
    command = _module("services.rollout.engine", "--index", str(index))
    service = _service(f"engine-{index}", command, deployment, (*needs, "router"))
    return replace(service, stop_grace_s=45)  # SGLang drains for six seconds or more


def _service(name: str, command: tuple[str, ...], deployment: Deployment, needs: tuple[str, ...]) -> Service:
    """A service of our own: GET /healthz on its first port."""
    ports = ports_of(deployment)[name]
    health = f"http://{reachable(ports[0].host)}:{ports[0].port}/healthz"
    # one thread each: they share the cores with the engines, and the trainer sets its own number
    return Service(name, command, health, ports, needs, environment={"OMP_NUM_THREADS": "1"})
