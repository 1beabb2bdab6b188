"""Runs -> one SGLang engine that serves them: launched or attached, given every weight version, seated at the router.

`python -m services.rollout.engine --index I`, once for each engine of a node.
"""

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from services.rollout.adapter_update import AdapterUpdate
from services.rollout.attach_engine import Attached
from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_events import EngineEvents
from services.rollout.engine_life import Life, Lives
from services.rollout.engine_memory import KeepMemory, Memory, TakeTurns
from services.rollout.engine_update import EngineUpdate
from services.rollout.held_process import HeldProcess, Launched
from services.rollout.host_copy import HostCopy
from services.rollout.launch_engine import EngineDied
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from services.rollout.register_with_router import RouterSeat
from services.rollout.take_files import TakeFiles
from shared.deployment import EngineSettings
from shared.errors import RunRejected, SluiceError
from shared.redis_connection import UNREACHABLE
from shared.runs import HEARTBEAT_S, announce, withdraw
from shared.service import Serving, main
from shared.tasks import end
from shared.weight_store import WeightStore


class Sidecar:
    """Looks after one engine through runs and restarts."""

    def __init__(self, index: int) -> None:
        self._held = HeldProcess(index)

    async def serve(self, serving: Serving) -> None:
        """Serve one run until it is cancelled.

        Raises:
            RunRejected: the run's engine settings are wrong, or the engine does not start with them.
            EngineLost: the engine died too often; somebody has to look.
        """
        place, lives = serving.place, self._lives(serving)
        seat, memory = RouterSeat(place.deployment.router_url, lives.url, place.log), _memory(serving, lives)
        following = asyncio.ensure_future(memory.follow())
        try:
            await seat.leave()  # a sidecar that was killed may have left the address there
            while True:
                try:
                    await self._serve_life(serving, lives, seat, memory, following)
                except EngineDied as death:
                    await self._bury(serving, lives, seat, death)
                    await asyncio.sleep(lives.next_delay_s(str(death), served=seat.was_taken))
                    seat.was_taken = False
        finally:
            await end(following)
            await seat.leave()
            await seat.close()
            await lives.release()

    def _lives(self, serving: Serving) -> Lives:
        """RunRejected if the engine is somebody else's and the run's memory is not to be kept."""
        settings, index = serving.place.deployment.engine, self._held.index
        if index < settings.count:
            return Launched(serving, self._held)
        url = _url(settings, index)
        if serving.record.settings.weights.memory == "turns":
            raise RunRejected(
                f'weights.memory is "turns", and the engine at {url} is somebody else\'s, who may start it anew or'
                ' use its memory at any time; leave engine.urls of the deployment empty, or write memory = "kept"'
            )
        return Attached(serving, url)

    async def _serve_life(
        self, serving: Serving, lives: Lives, seat: RouterSeat, memory: Memory, following: "asyncio.Future[None]"
    ) -> None:
        """Serve with one life of the engine until that or the run ends."""
        place = serving.place
        engine = await _while_followed(following, memory.start())
        update = _update_of(serving, engine)
        # adapters come as files, which no run with turns has
        memory.serves(update if isinstance(update, EngineUpdate) else None)
        identity = EngineIdentity(place.name, engine.incarnation, engine.ranks)
        puller = WeightPuller(serving.redis, serving.run, identity, update, place.log)
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                engine.watch(),
                _announce_up(serving, engine.calls),
                puller.follow(seat.want, seat.leave),
                seat.keep(),
                _ready_once_seated(serving, seat),
                asyncio.shield(following),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            memory.serves(None)
            await end(*tasks)
            with contextlib.suppress(*UNREACHABLE):
                await withdraw(serving.redis, serving.run, f"engine-up/{place.name}")
            if update.unfinished or update.mixed:
                await seat.leave()
                await lives.stop(grace_s=0)

    async def _bury(self, serving: Serving, lives: Lives, seat: RouterSeat, death: EngineDied) -> None:
        """Tell the router and everybody who reads the events, and clear what is left of the engine."""
        await seat.leave()
        await lives.stop(grace_s=0)
        await _events(serving).tell("engine_died", reason=str(death))

    def shut_down(self) -> None:
        """Stop the engine when the event loop is gone already."""
        self._held.shut_down()


def _events(serving: Serving) -> EngineEvents:
    return EngineEvents(serving.redis, serving.run, serving.place.name, serving.place.log)


async def _while_followed(following: "asyncio.Future[None]", starting: Coroutine[Any, Any, Life]) -> Life:
    """The life that was started; what following raised, if that ended first: without it none would ever start."""
    start = asyncio.ensure_future(starting)
    try:
        await asyncio.wait((start, following), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        return await start
    finally:
        await end(start)


def _memory(serving: Serving, lives: Lives) -> Memory:
    if serving.record.settings.weights.memory == "kept":
        return KeepMemory(lives)
    return TakeTurns(serving.redis, serving.run, serving.place.name, lives, serving.place.log)


def _update_of(serving: Serving, engine: Life) -> EngineUpdate | AdapterUpdate:
    """How versions come into the engine."""
    files, settings = _incoming_files(serving, engine.calls), serving.record.settings
    if settings.lora.is_served:
        assert files is not None, "the run's settings say that adapters come as files"
        return AdapterUpdate(engine.calls, files)
    mode = settings.engine.update_mode
    return EngineUpdate(engine.calls, mode, engine.device, engine.shares_prefixes, files, mixed=engine.was_there_before)


def _incoming_files(serving: Serving, calls: EngineCalls) -> TakeFiles | None:
    """How versions in files come in; RunRejected if the folder that they come from cannot be used on this host."""
    weights = serving.record.settings.weights
    if weights.transport == "broadcast":
        return None
    if weights.folder:
        WeightStore(weights.folder)
    own = Path(weights.local_folder) if weights.local_folder else serving.place.deployment.paths.home / "engine_weights"
    in_place = weights.transport == "disk" and not weights.local_folder
    return TakeFiles(calls, HostCopy(own.expanduser().absolute()), in_place, _events(serving))


def _url(settings: EngineSettings, index: int) -> str:
    """SluiceError if there is no such engine in this deployment."""
    if index >= settings.sidecars:
        raise SluiceError(
            f"there is no engine {index} in this deployment; engine.count is {settings.count} and engine.urls has"
            f" {len(settings.urls)}, so the largest --index is {settings.sidecars - 1}"
        )
    return settings.urls[index - settings.count]


async def _announce_up(serving: Serving, calls: EngineCalls) -> None:
    """Tell the trainer that here is an engine that wants weights, as long as it answers: a frozen one wants none."""
    while True:
        if await calls.healthy():
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
