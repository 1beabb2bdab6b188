"""Runs -> one SGLang engine that serves them: launched, kept alive, given every weight version, seated at the router.

`python -m services.rollout.engine --index I`, once for each engine of a node.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from services.rollout.engine_arguments import EnginePlan, plan_engine
from services.rollout.engine_events import EngineEvents
from services.rollout.engine_restarts import Restarts
from services.rollout.engine_update import EngineUpdate
from services.rollout.host_copy import HostCopy
from services.rollout.launch_engine import EngineDied, EngineProcess
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from services.rollout.register_with_router import RouterSeat
from services.rollout.take_files import TakeFiles
from shared.redis_connection import UNREACHABLE
from shared.runs import HEARTBEAT_S, announce, withdraw
from shared.service import Serving, main
from shared.tasks import end
from shared.weight_store import WeightStore


class Sidecar:
    """Holds one engine process through runs and restarts."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._engine: EngineProcess | None = None

    async def serve(self, serving: Serving) -> None:
        """Serve one run until it is cancelled.

        Raises:
            RunRejected: the run's engine settings are wrong, or the engine does not start with them.
            EngineLost: the engine died too often; somebody has to look.
        """
        settings, place = serving.record.settings, serving.place
        host, port = place.deployment.engine.host, place.deployment.engine.port + self._index
        plan = plan_engine(settings.model, settings.engine, host, port, self._index)
        seat = RouterSeat(place.deployment.router_url, plan.url, place.log)
        restarts = Restarts(starting=serving.record.state == "starting")
        try:
            await seat.leave()  # a sidecar that was killed may have left the address there
            while True:
                try:
                    await self._serve_life(serving, await self._start(serving, plan), seat)
                except EngineDied as death:
                    await self._bury(serving, seat, death)
                    await asyncio.sleep(restarts.next_delay_s(str(death), served=seat.was_taken))
                    seat.was_taken = False
        finally:
            await seat.leave()
            await seat.close()

    async def _start(self, serving: Serving, plan: EnginePlan) -> EngineProcess:
        """A healthy engine of this plan: the one that runs if it fits, else a new one."""
        engine, log = self._engine, serving.place.log
        if engine is not None and not (engine.alive and engine.plan == plan):
            await self._stop()
            engine = None
        if engine is None:
            log_file = serving.place.deployment.paths.home.absolute() / "logs" / f"sglang-{self._index}.log"
            # Started in this thread, which lives as long as the sidecar: the kernel kills the engine when it ends.
            engine = self._engine = EngineProcess(plan, log_file, serving.place.deployment.engine.command)
            log.info("engine_started", run=serving.run, url=plan.url, device=plan.device, pid=engine.pid, log=log_file)
        started = time.monotonic()
        await engine.wait_healthy(serving.record.settings.engine.start_deadline_s)
        log.info("engine_healthy", run=serving.run, url=plan.url, waited_s=time.monotonic() - started)
        return engine

    async def _serve_life(self, serving: Serving, engine: EngineProcess, seat: RouterSeat) -> None:
        """Serve with one process until it dies or the run ends."""
        place, mode = serving.place, serving.record.settings.engine.update_mode
        update = EngineUpdate(engine.calls, mode, engine.plan.device, _incoming_files(serving, engine))
        identity = EngineIdentity(place.name, engine.incarnation, engine.plan.ranks)
        puller = WeightPuller(serving.redis, serving.run, identity, update, place.log)
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                engine.watch(),
                _announce_up(serving),
                puller.follow(seat.want, seat.leave),
                seat.keep(),
                _ready_once_seated(serving, seat),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await end(*tasks)
            with contextlib.suppress(*UNREACHABLE):
                await withdraw(serving.redis, serving.run, f"engine-up/{place.name}")
            if update.unfinished or update.mixed:
                await seat.leave()
                await self._stop(grace_s=0)

    async def _bury(self, serving: Serving, seat: RouterSeat, death: EngineDied) -> None:
        """Tell the router and everybody who reads the events, and clear what is left of the process."""
        await seat.leave()
        await self._stop(grace_s=0)
        await _events(serving).tell("engine_died", reason=str(death))

    async def _stop(self, grace_s: float | None = None) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.stop, *(() if grace_s is None else (grace_s,)))
            await engine.calls.close()

    def shut_down(self) -> None:
        """Stop the engine when the event loop is gone already."""
        if self._engine is not None:
            self._engine.stop()


def _events(serving: Serving) -> EngineEvents:
    return EngineEvents(serving.redis, serving.run, serving.place.name, serving.place.log)


def _incoming_files(serving: Serving, engine: EngineProcess) -> TakeFiles | None:
    """How versions in files come in; RunRejected if the folder that they come from cannot be used on this host."""
    weights = serving.record.settings.weights
    if weights.transport == "broadcast":
        return None
    if weights.folder:
        WeightStore(weights.folder)
    own = Path(weights.local_folder) if weights.local_folder else serving.place.deployment.paths.home / "engine_weights"
    in_place = weights.transport == "disk" and not weights.local_folder
    return TakeFiles(engine.calls, HostCopy(own.expanduser().absolute()), in_place, _events(serving))


async def _announce_up(serving: Serving) -> None:
    """Tell the trainer that here is an engine that wants weights."""
    while True:
        with contextlib.suppress(*UNREACHABLE):
            await announce(serving.redis, serving.run, f"engine-up/{serving.place.name}")
        await asyncio.sleep(HEARTBEAT_S)


async def _ready_once_seated(serving: Serving, seat: RouterSeat) -> None:
    await seat.seated()
    serving.ready()


def run() -> None:
    """Serve runs until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m services.rollout.engine", description=__doc__)
    parser.add_argument("--index", type=int, default=0, help="which engine of this node; sets its ports")
    index: int = parser.parse_args().index
    sidecar = Sidecar(index)
    name = f"{socket.gethostname()}-{os.getpid()}"
    try:
        main("engine", name, lambda deployment: deployment.health.engine_port + index, sidecar.serve, ("rl",))
    finally:
        sidecar.shut_down()


if __name__ == "__main__":
    run()
