"""docker-compose.yml and deploy/services.py tell of the same services."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.services import Service, reachable, services_of
from shared.deployment import PREFIX, Deployment, load_deployment

ROOT = Path(__file__).parents[2]
GIVEN = {"SLUICE_REDIS_PASSWORD": "secret", "SLUICE_API_KEY": "key", "SLUICE_MODELS": "/models"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")

Compose = dict[str, dict[str, Any]]


def interpolate(text: str, given: dict[str, str]) -> str:
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?why}; KeyError with the sentence where a value is missing."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if name in given:
            return given[name]
        if sign == "-":
            return rest
        raise KeyError(rest or name)

    return VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def compose() -> Compose:
    return yaml.safe_load(interpolate((ROOT / "docker-compose.yml").read_text(), GIVEN))["services"]


@pytest.fixture(scope="module")
def deployment(compose: Compose) -> Deployment:
    """The deployment that the containers see."""
    return load_deployment(environ=compose["gateway"]["environment"])


@pytest.fixture
def listed(deployment: Deployment) -> dict[str, Service]:
    return {service.name: service for service in services_of(deployment)}


def test_both_lists_name_the_same_services(compose: Compose, listed: dict[str, Service]) -> None:
    assert set(compose) == {"redis", *listed}


def test_commands_are_the_same(compose: Compose, listed: dict[str, Service]) -> None:
    for name, service in listed.items():
        assert compose[name]["command"] == ["python", *service.command[1:]]
        assert service.command[0] == sys.executable


def test_health_checks_ask_the_same_address(compose: Compose, listed: dict[str, Service]) -> None:
    for name, service in listed.items():
        assert compose[name]["healthcheck"]["test"] == ["CMD", "python", "-m", "deploy.probe", service.health]
        assert service.health.startswith(f"http://{reachable('0.0.0.0')}:")


def test_a_service_waits_until_those_it_needs_are_healthy(compose: Compose, listed: dict[str, Service]) -> None:
    for name, service in listed.items():
        # here Redis is a service of its own; `services_of` leaves it out where its address is given
        takes_redis = {"redis"} if name != "router" else set()
        needed = {need: {"condition": "service_healthy"} for need in {*service.needs, *takes_redis}}
        assert compose[name].get("depends_on", {}) == needed


def test_every_service_sees_the_same_settings_and_the_same_other_variables(
    compose: Compose, listed: dict[str, Service]
) -> None:
    settings = {k: v for k, v in compose["gateway"]["environment"].items() if k.startswith(PREFIX)}
    for name, service in listed.items():
        assert compose[name]["environment"] == {**settings, **service.environment}
    assert all("__" in variable for variable in settings)


def test_containers_reach_each_other_by_service_name(deployment: Deployment, compose: Compose) -> None:
    assert deployment.router_url == f"http://router:{deployment.router.port}"
    assert deployment.gateway_url == f"http://gateway:{deployment.gateway.port}"
    assert deployment.redis.url == "redis://:secret@redis:6379/0"
    assert deployment.trainer.host in compose
    assert deployment.engine.host == compose["engine-0"]["hostname"]
    assert deployment.engine.host in compose["engine-0"]["networks"]["default"]["aliases"]


def test_published_ports_are_ports_of_the_service_and_bound_to_loopback(
    compose: Compose, listed: dict[str, Service]
) -> None:
    published = {name: compose[name].get("ports", []) for name in compose}
    assert {name for name, ports in published.items() if ports} == {"gateway", "router"}
    for name, ports in published.items():
        for address in ports:
            host, outside, inside = address.split(":")
            assert host == "127.0.0.1"
            assert outside == inside
            assert int(inside) in [use.port for use in listed[name].ports]


def test_stopping_takes_as_long_as_the_service_may_need(compose: Compose, listed: dict[str, Service]) -> None:
    for name, service in listed.items():
        assert compose[name]["stop_grace_period"] == f"{service.stop_grace_s:g}s"


def test_redis_keeps_what_it_is_given_as_the_embedded_one_does(compose: Compose) -> None:
    command = compose["redis"]["command"]
    assert dict(zip(command[1::2], command[2::2], strict=True)) == {
        "--requirepass": "secret",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
        "--save": "",
    }
    assert "ports" not in compose["redis"]


def test_all_services_restart_and_the_gpu_goes_to_trainer_and_engine(compose: Compose) -> None:
    def has_gpu(service: dict[str, Any]) -> bool:
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        return [device["capabilities"] for device in devices] == [["gpu"]]

    assert {service["restart"] for service in compose.values()} == {"unless-stopped"}
    assert {name for name, service in compose.items() if has_gpu(service)} == {"trainer", "engine-0"}


@pytest.mark.parametrize("missing", GIVEN)
def test_a_missing_variable_is_told_with_what_to_set(missing: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    given: Callable[[str], bool] = lambda name: name != missing  # noqa: E731
    with pytest.raises(KeyError, match="set it to "):
        interpolate(text, {name: value for name, value in GIVEN.items() if given(name)})


def test_images_install_the_extras_that_their_services_need(compose: Compose) -> None:
    extras = {"cpu": {"gateway", "reward", "rollout", "router"}, "gpu": {"trainer", "engine", "rollout"}}
    for image, wanted in extras.items():
        dockerfile = (ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text()
        found = re.search(r'"\.\[([a-z,]+)\]"', dockerfile)
        assert found is not None
        assert set(found[1].split(",")) == wanted
        users = {name for name, service in compose.items() if service["image"] == f"sluice-{image}"}
        assert users <= wanted | {"engine-0"}
