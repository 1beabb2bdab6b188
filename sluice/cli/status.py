"""`sluice status`: services, engines, the active run and Redis at a glance."""

from typing import Any

import typer
from rich.console import Group, RenderableType

from deploy.supervisor_state import SupervisorState, read_state
from shared.errors import SluiceError
from shared.status_answers import MemoryStatus
from shared.weights_answers import UpdateStatus
from sluice.cli.engine_table import engine_table
from sluice.cli.options import AsJson, Config, SetDeployment, deployment_of
from sluice.cli.output import clock, show, size, table
from sluice.connect import connect, gateway_url


def status(config: Config = None, assignments: SetDeployment = None, as_json: AsJson = False) -> None:
    """Say what runs. Exit code 1 unless the gateway answers and every service is healthy."""
    deployment = deployment_of(config, assignments)
    state = read_state(deployment.paths.home)
    local = state if state is not None and state.alive else None
    gateway, reason = None, ""
    try:
        with connect(deployment, timeout_s=10) as client:
            gateway = client.status()
    except SluiceError as error:
        reason = str(error)
    if local is None and gateway is None:
        raise SluiceError(reason)
    services = local.services if local else {}
    data = {"gateway_url": gateway_url(deployment), "gateway": gateway, "gateway_error": reason, "services": services}
    show(as_json, data, Group(*_views(local, gateway, reason)))
    if gateway is None or any(service["phase"] != "healthy" for service in services.values()):
        raise typer.Exit(1)


def _views(local: SupervisorState | None, gateway: dict[str, Any] | None, reason: str) -> list[RenderableType]:
    views: list[RenderableType] = []
    if local is not None:
        rows = [
            (name, s["phase"], s["pid"], s["restarts"], clock(s["since"]), s["reason"])
            for name, s in local.services.items()
        ]
        views += [table(("service", "state", "pid", "restarts", "since", "last reason"), rows), ""]
    if gateway is None:
        return [*views, reason]
    redis, router = gateway["redis"], gateway["router"]
    workers = router.get("workers")
    count = (len(workers) if isinstance(workers, list) else workers) or 0
    engines = f"{count} engine{'' if count == 1 else 's'}"
    run, update, memory = gateway["active_run"], gateway.get("update"), gateway.get("memory")
    return [
        *views,
        f"active run   {run['run'] if isinstance(run, dict) else run or 'none'}",
        f"ready        {', '.join(gateway['services']) or 'no service has joined a run'}",
        f"router       {'reachable' if router['reachable'] else 'not reachable'}, {engines}",
        f"redis        {redis.get('version')}, {size(float(redis.get('used_memory') or 0))}",
        *([_memory(MemoryStatus.model_validate(memory))] if memory else ()),
        *(_update(UpdateStatus.model_validate(update)) if update else ()),
    ]


def _memory(memory: MemoryStatus) -> str:
    """Whose turn it is, and where each engine is with that."""
    whose = "the engines'"
    if memory.holder == "trainer":
        whose = "the trainer's" if memory.trainer_is_up else "the trainer's, which is not up,"
    engines = ", ".join(" ".join(filter(None, (one.engine, one.state, one.reason))) for one in memory.engines)
    return f"memory       {whose} since {clock(memory.since)}; {engines or 'no engine'}"


def _update(update: UpdateStatus) -> list[RenderableType]:
    """The version that engines are being given, and where each of them is."""
    up = [one for one in update.engines if one.up]
    done = sum(one.state == "done" for one in up)
    taken = f"{done} of {len(up)} engines have it" if up else "no engine is up"
    text = f"weights      version {update.version}, announced {clock(update.announced)}; {taken}"
    asked = update.rollback
    back = [f"rollback     to version {asked.version}, asked for {clock(asked.asked)}: {asked.state}"] if asked else []
    return [text, *back, "", engine_table(update.engines)]
