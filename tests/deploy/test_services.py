"""The list of services as the settings make it."""

from pathlib import Path

import pytest

from deploy.services import children_environment, ports_of, router_arguments, services_of, settings_environment
from shared.deployment import Deployment, PathSettings, load_deployment
from shared.errors import SettingsError


def deployment(home: Path, **overrides: object) -> Deployment:
    return load_deployment(environ={}, overrides={"paths": {"home": str(home)}, **overrides})


def test_redis_is_a_service_only_where_none_is_configured(tmp_path: Path) -> None:
    own = [service.name for service in services_of(deployment(tmp_path))]
    given = services_of(deployment(tmp_path, redis={"url": "redis://elsewhere:6379/0"}))
    assert own == ["redis", "router", "gateway", "reward", "rollout", "trainer", "engine-0"]
    assert [service.name for service in given] == own[1:]
    assert not any("redis" in service.needs for service in given)


def test_a_service_comes_after_those_it_needs(tmp_path: Path) -> None:
    seen: set[str] = set()
    for service in services_of(deployment(tmp_path, engine={"count": 3})):
        assert set(service.needs) <= seen
        seen.add(service.name)
    assert {"engine-0", "engine-1", "engine-2"} <= seen


def test_ports_are_those_of_the_services(tmp_path: Path) -> None:
    settings = deployment(tmp_path, engine={"count": 2})
    assert {s.name: s.ports for s in services_of(settings)} == ports_of(settings)
    assert ports_of(settings)["engine-1"][1].port == settings.engine.port + 1


def test_engines_of_somebody_else_have_sidecars_after_our_own_and_no_port_here(tmp_path: Path) -> None:
    settings = deployment(tmp_path, engine={"count": 1, "urls": ["http://gpu-7:30000", "http://gpu-8:30000"]})
    assert [s.name for s in services_of(settings) if s.name.startswith("engine")] == [
        "engine-0",
        "engine-1",
        "engine-2",
    ]
    settings_of_ports = [[use.setting for use in ports_of(settings)[f"engine-{index}"]] for index in range(3)]
    assert settings_of_ports == [["health.engine_port", "engine.port"], ["health.engine_port"], ["health.engine_port"]]
    assert load_deployment(environ=settings_environment(settings)).engine.urls == settings.engine.urls


@pytest.mark.parametrize("url", ["gpu-7:30000", "http://", "http://gpu-7:30000/v1"])
def test_an_engine_address_is_a_server_and_nothing_else(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"engine\.urls"):
        deployment(tmp_path, engine={"urls": [url]})


def test_the_ports_are_known_without_writing_anything(tmp_path: Path) -> None:
    ports_of(deployment(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_a_child_sees_exactly_the_deployment_that_the_supervisor_has(tmp_path: Path) -> None:
    given = deployment(
        tmp_path, gateway={"api_key": '12 "x" é'}, log={"level": "debug"}, redis={"url": "redis://r:1/0"}
    )
    assert load_deployment(environ=settings_environment(given)) == given
    assert load_deployment(environ=children_environment(given)) == given


def test_children_are_told_the_address_of_the_embedded_redis(tmp_path: Path) -> None:
    seen = load_deployment(environ=children_environment(deployment(tmp_path)))
    password = (tmp_path / "redis_password").read_text()
    assert seen.redis.url == f"redis://:{password}@127.0.0.1:{seen.redis.port}/0"


def test_a_relative_home_is_made_absolute_for_children(tmp_path: Path) -> None:
    seen = load_deployment(environ=settings_environment(Deployment(paths=PathSettings(home=Path("here")))))
    assert seen.paths.home == Path.cwd() / "here"


def test_the_router_bears_an_engine_that_is_paused_for_a_weight_update(tmp_path: Path) -> None:
    arguments = router_arguments(deployment(tmp_path))
    values = dict(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
    pause = int(values["--health-check-interval-secs"]) * int(values["--health-failure-threshold"])
    assert pause > 120
    assert arguments[-1] == "--disable-circuit-breaker"
