"""The list of services -> all of them running, in order of their needs, until SIGTERM; then stopped in reverse."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.keep_running import Condition, Keeper
from deploy.ports import check_ports
from deploy.process import birth
from deploy.services import Service, children_environment, local_gateway_url, ports_of, services_of
from deploy.stop_leftovers import stop_leftovers
from deploy.supervisor_state import SupervisorState, only_one, write_state
from shared.deployment import Deployment, load_deployment
from shared.errors import SluiceError
from shared.logs import configure
from shared.service import stop_on_signals
from shared.tasks import end

Report = Callable[[Condition], None]


async def supervise(deployment: Deployment, report: Report, ready: Callable[[], None]) -> None:
    """Run a deployment on this machine until SIGTERM or SIGINT; `ready` is called once everything is healthy.

    Raises:
        SluiceError: it runs already, a port is taken, or a service cannot start; then nothing is left running.
    """
    home = deployment.paths.home.absolute()
    with only_one(home):
        await stop_leftovers(home)
        check_ports(use for ports in ports_of(deployment).values() for use in ports)
        await Supervisor(deployment, home, services_of(deployment), report).run(stop_on_signals(), ready)


class Supervisor:
    """Keeps the services of one deployment running."""

    def __init__(self, deployment: Deployment, home: Path, services: list[Service], report: Report) -> None:
        self._home, self._report = home, report
        self._state = SupervisorState(
            pid=os.getpid(),
            born=birth(os.getpid()),
            started=time.time(),
            gateway_url=local_gateway_url(deployment),
            ports={use.setting: use.port for service in reversed(services) for use in service.ports},
        )
        (home / "logs").mkdir(parents=True, exist_ok=True)
        environment = children_environment(deployment)
        self._keepers = {s.name: Keeper(s, environment, home / "logs" / f"{s.name}.log", self._note) for s in services}

    async def run(self, stopping: asyncio.Event, ready: Callable[[], None]) -> None:
        write_state(self._home, self._state)
        self._tasks = {name: asyncio.create_task(self._when_needs_are_met(k)) for name, k in self._keepers.items()}
        stop = asyncio.create_task(stopping.wait())
        try:
            await self._until_healthy(stop)
            if not stopping.is_set():
                self._phase("running")
                ready()
            await self._first_done(stop)
            self._phase("stopping")
        except SluiceError as error:
            self._phase("failed", str(error))
            raise
        finally:
            stop.cancel()
            await self._stop_all()
            if self._state.phase != "failed":
                self._phase("stopped")

    async def _until_healthy(self, stop: "asyncio.Task[bool]") -> None:
        """Until every service is healthy or `stop` is done; raises what the first one that was given up raised."""
        everything = asyncio.create_task(self._all_healthy())
        try:
            await self._first_done(everything, stop)
        finally:
            everything.cancel()

    async def _first_done(self, *awaited: "asyncio.Task[Any]") -> None:
        """Wait for one of `awaited`; raises what ends the keeping of a service, which nothing else does."""
        await asyncio.wait({*awaited, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def _all_healthy(self) -> None:
        for keeper in self._keepers.values():
            await keeper.healthy.wait()

    async def _when_needs_are_met(self, keeper: Keeper) -> None:
        for need in keeper.service.needs:
            await self._keepers[need].healthy.wait()
        await keeper.run()

    async def _stop_all(self) -> None:
        await end(*self._tasks.values())
        stopped = {name: asyncio.Event() for name in self._keepers}
        await asyncio.gather(*(self._stop_after_users(keeper, stopped) for keeper in self._keepers.values()))

    async def _stop_after_users(self, keeper: Keeper, stopped: dict[str, asyncio.Event]) -> None:
        name = keeper.service.name
        try:
            for user in self._keepers.values():
                if name in user.service.needs:
                    await stopped[user.service.name].wait()
            await keeper.stop()
        finally:
            stopped[name].set()

    def _note(self, condition: Condition) -> None:
        entry = {"phase": condition.phase, "pid": condition.pid, "restarts": condition.restarts}
        times = {"since": condition.since, "reason": condition.reason, "born": birth(condition.pid or 0)}
        self._state.services[condition.name] = {**entry, **times}
        with contextlib.suppress(OSError):  # a full disk ends no keeping; the next change is written again
            write_state(self._home, self._state)
        self._report(condition)

    def _phase(self, phase: str, failure: str = "") -> None:
        self._state.phase, self._state.failure = phase, failure
        write_state(self._home, self._state)


def main() -> None:
    """Supervise the deployment of the environment; for `sluice up --detach` and for process managers."""
    try:
        deployment = load_deployment()
        log = configure("supervisor", deployment.log.level, deployment.log.format == "json")

        def report(condition: Condition) -> None:
            log.info(condition.phase, name=condition.name, pid=condition.pid, reason=condition.reason)

        asyncio.run(supervise(deployment, report, lambda: log.info("all_healthy")))
    except SluiceError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
