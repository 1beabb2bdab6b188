"""Runs -> the one SGLang process of a sidecar: kept from run to run while it fits, started anew where it does not."""

import asyncio
import time

from services.rollout.engine_arguments import EnginePlan, plan_engine
from services.rollout.engine_restarts import Restarts
from services.rollout.launch_engine import EngineProcess
from shared.service import Serving
from shared.tasks import see_through


class HeldProcess:
    """The process, if there is one."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.engine: EngineProcess | None = None

    async def stop(self, grace_s: float | None = None) -> None:
        """End the process, and everything that it started. Who is cancelled meanwhile leaves port and memory free."""
        engine, self.engine = self.engine, None
        if engine is not None:
            try:
                await see_through(asyncio.to_thread(engine.stop, *(() if grace_s is None else (grace_s,))))
            finally:
                await engine.calls.close()

    def shut_down(self) -> None:
        """The same when the event loop is gone already."""
        if self.engine is not None:
            self.engine.stop()


class Launched:
    """The lives of the process, as long as a run is served."""

    def __init__(self, serving: Serving, held: HeldProcess) -> None:
        """RunRejected if the run's engine settings are wrong."""
        settings, place = serving.record.settings, serving.place
        host, port = place.deployment.engine.host, place.deployment.engine.port + held.index
        self._takes_turns = settings.weights.memory == "turns"
        self._plan: EnginePlan = plan_engine(
            settings.model, settings.engine, host, port, held.index, settings.weights, settings.lora
        )
        self._serving, self._held = serving, held
        self._restarts = Restarts(starting=serving.record.state == "starting")
        self.url = self._plan.url

    async def start(self) -> EngineProcess:
        """A healthy engine of this plan: the one that runs if it fits, else a new one.

        Raises:
            EngineDied: it did not come up.
        """
        serving, plan, held = self._serving, self._plan, self._held
        engine, log = held.engine, serving.place.log
        if engine is not None and not (engine.alive and engine.plan == plan):
            await held.stop()
            engine = None
        if engine is None:
            log_file = serving.place.deployment.paths.home.absolute() / "logs" / f"sglang-{held.index}.log"
            # Started in this thread, which lives as long as the sidecar: the kernel kills the engine when it ends.
            engine = held.engine = EngineProcess(plan, log_file, serving.place.deployment.engine.command)
            log.info("engine_started", run=serving.run, url=plan.url, device=plan.device, pid=engine.pid, log=log_file)
        started = time.monotonic()
        await engine.wait_healthy(serving.record.settings.engine.start_deadline_s)
        log.info("engine_healthy", run=serving.run, url=plan.url, waited_s=time.monotonic() - started)
        return engine

    async def stop(self, grace_s: float | None = None) -> None:
        """End the process."""
        await self._held.stop(grace_s)

    async def release(self) -> None:
        """The run is over. The process stays for the next one, unless it has a GPU whose memory others count on."""
        if self._takes_turns:
            await self._held.stop()

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """Seconds to wait before the next start; see Restarts."""
        return self._restarts.next_delay_s(reason, served)
