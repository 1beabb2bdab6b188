"""Where the services of one deployment live: folders, addresses and ports; `sluice.toml` < SLUICE_* < command line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.check_address import HttpAddress, RedisAddress
from shared.errors import SettingsError
from shared.settings import Layer, Settings, from_environment, read_toml, validate_layers

Port = Annotated[int, Field(gt=0, lt=65536)]
PREFIX = "SLUICE_"
COMPOSE_VARIABLES = (
    "SLUICE_REDIS_PASSWORD",
    "SLUICE_API_KEY",
    "SLUICE_MODELS",
    "SLUICE_PLUGINS",
    "SLUICE_BIND",
)
"""What docker-compose.yml asks its caller for."""


class PathSettings(Settings):
    """Folders that the services of one node share."""

    home: Path = Path(".sluice")
    """Datasets, runs, logs, the embedded Redis and the API key."""


class RedisSettings(Settings):
    """The Redis that holds the streams."""

    url: RedisAddress = ""
    """redis:// or rediss:// URL; empty starts an embedded server (sluice up only)."""
    port: Port = 8302
    """Port of the embedded server."""
    fsync: Literal["everysec", "always"] = "everysec"
    """When the embedded server writes to disk: once a second, or before every answer, which is slower."""
    connect_deadline_s: Annotated[float, Field(gt=0)] = 30
    """Seconds that a starting service waits for the server."""
    outage_deadline_s: Annotated[float, Field(gt=0)] = 600
    """Seconds that a running service waits for a server that is away, full or read-only, before it exits."""


class GatewaySettings(Settings):
    """The REST API."""

    host: str = "127.0.0.1"
    """Address that the API listens on; any but a loopback address needs api_key."""
    port: Port = 8300
    """Port of the API."""
    api_key: str = ""
    """Key that clients send as `Authorization: Bearer ...`; empty: made on the first start, kept in home/api_key."""
    url: HttpAddress = ""
    """Where clients reach the gateway; empty: http://host:port."""


class RouterSettings(Settings):
    """sglang-router, in front of the engines."""

    host: str = "127.0.0.1"
    """Address that the router listens on."""
    port: Port = 8301
    """Port of the router."""
    metrics_port: Port = 8303
    """Port of the router's Prometheus metrics."""
    policy: Literal["round_robin", "random", "cache_aware", "power_of_two"] = "round_robin"
    """How the router chooses an engine for a request."""
    url: HttpAddress = ""
    """Where services reach the router; empty: http://host:port."""


class EngineSettings(Settings):
    """The engine sidecars of this node."""

    count: Annotated[int, Field(ge=0)] = 1
    """Engines on this node, each with a sidecar that launches it."""
    urls: list[Annotated[str, Field(pattern=r"^https?://[^/?#]+$")]] = []
    """Addresses of SGLang servers that somebody else starts and restarts, such as `http://gpu-7:30000`; each gets a
    sidecar on this node, numbered after those of `count`."""
    host: str = "127.0.0.1"
    """Address that engines bind to and that router and trainer reach them by."""
    port: Port = 8310
    """Port of the first engine; engine i listens on port + i."""
    command: list[str] = []
    """What starts an engine, such as numactl and its options before `python -m services.rollout.engine_server`; the
    sidecar appends its process id and the ServerArgs as JSON. Empty: that module alone."""

    @property
    def sidecars(self) -> int:
        """Engines that this node looks after."""
        return self.count + len(self.urls)


class TrainerSettings(Settings):
    """The trainer of this node."""

    host: str = "127.0.0.1"
    """Address by which engines reach the trainer's rendezvous."""
    processes: Annotated[int, Field(gt=0)] = 1
    """Ranks that share the model on this node, one for each GPU; more than one are started by torchrun."""


class HealthSettings(Settings):
    """Health endpoints of the services without a REST API."""

    host: str = "127.0.0.1"
    """Address that health endpoints listen on."""
    trainer_port: Port = 8320
    """Port of the trainer's."""
    rollout_port: Port = 8321
    """Port of the rollout worker's."""
    reward_port: Port = 8322
    """Port of the reward worker's."""
    engine_port: Port = 8330
    """Port of the first sidecar; sidecar i listens on engine_port + i."""


class LogSettings(Settings):
    """What services log, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important events that are logged."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""


class Deployment(Settings):
    """One deployment."""

    paths: PathSettings = PathSettings()
    redis: RedisSettings = RedisSettings()
    gateway: GatewaySettings = GatewaySettings()
    router: RouterSettings = RouterSettings()
    engine: EngineSettings = EngineSettings()
    trainer: TrainerSettings = TrainerSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()

    @property
    def gateway_url(self) -> str:
        return self.gateway.url or f"http://{self.gateway.host}:{self.gateway.port}"

    @property
    def router_url(self) -> str:
        return self.router.url or f"http://{self.router.host}:{self.router.port}"

    @property
    def runs_folder(self) -> Path:
        return self.paths.home.absolute() / "runs"


def load_deployment(
    file: Path | None = None, environ: Mapping[str, str] | None = None, overrides: dict[str, Any] | None = None
) -> Deployment:
    """Read `file` (default: ./sluice.toml if it is there), SLUICE_SECTION__NAME variables and overrides.

    Raises:
        SettingsError: unreadable file, unknown name or wrong value.
    """
    default = Path("sluice.toml")
    path = file or (default if default.exists() else None)
    given = os.environ if environ is None else environ
    _check_names(given)
    variables = from_environment(given, PREFIX)
    variables.pop("run", None)
    file_layer = Layer(str(path or default), read_toml(path) if path else {})
    layers = [file_layer, Layer("environment", variables, PREFIX), Layer("--set", overrides or {})]
    return validate_layers(Deployment, layers)


def _check_names(environ: Mapping[str, str]) -> None:
    """SettingsError for a variable with one underscore where two belong."""
    for name in environ:
        if name.startswith(PREFIX) and "__" not in name and name not in COMPOSE_VARIABLES:
            section, _, rest = name.removeprefix(PREFIX).partition("_")
            raise SettingsError(f"{name} is no variable of Sluice; did you mean {PREFIX}{section}__{rest}?")


def run_environment(environ: Mapping[str, str] | None = None) -> Layer:
    """SLUICE_RUN__SECTION__NAME variables -> settings of a run, for whoever starts one."""
    given = from_environment(os.environ if environ is None else environ, PREFIX)
    return Layer("environment", given.get("run", {}), f"{PREFIX}RUN__")
