"""A service's life: settings, signals, health endpoint, following the active run, an exit code with a reason."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from shared.await_redis import AwaitRedis, Outage
from shared.deployment import Deployment, load_deployment
from shared.errors import FencedOut, PluginError, RunRejected, SettingsError, SluiceError
from shared.health import serve_health
from shared.logs import Log, configure
from shared.redis_connection import UNREACHABLE, connect_checked
from shared.runs import ENDED, HEARTBEAT_S, RunRecord, Runs, announce, withdraw
from shared.tasks import end
from shared.topology import Keys

POLL_S = 0.5
MAX_FAILURES = 4
"""Unexpected failures of a role, in different processes, after which the run fails too."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a service has in hand for its whole life."""

    deployment: Deployment
    redis: Redis
    log: Log
    name: str
    """Unique among the services of its role, such as `worker-4711`."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a service has in hand while it serves one run."""

    place: Place
    record: RunRecord
    ready: Callable[[], None]
    """To be called once the service can do its work for this run."""

    @property
    def run(self) -> str:
        return self.record.run

    @property
    def redis(self) -> Redis:
        return self.place.redis

    def await_redis(self) -> AwaitRedis:
        """Repeats calls to Redis while it is away, for as long as the deployment allows."""
        return AwaitRedis(self.place.log, self.run, self.place.deployment.redis.outage_deadline_s)


Serve = Callable[[Serving], Awaitable[None]]
"""Serves one run until it is cancelled (the run ended or the service stops) or has nothing more to do."""


def main(role: str, name: str, health_port: Callable[[Deployment], int], serve: Serve, kinds: tuple[str, ...]) -> None:
    """Run a service until SIGTERM or SIGINT; exits 1 with one sentence when it cannot go on."""
    try:
        deployment = load_deployment()
        log = configure(role, deployment.log.level, deployment.log.format == "json")
        asyncio.run(_live(role, name, deployment, log, health_port(deployment), serve, kinds))
    except SluiceError as error:
        sys.stderr.write(f"sluice {role}: {error}\n")
        sys.exit(1)


async def _live(
    role: str, name: str, deployment: Deployment, log: Log, port: int, serve: Serve, kinds: tuple[str, ...]
) -> None:
    stopping = stop_on_signals()
    async with serve_health(deployment.health.host, port):
        redis = await connect_checked(deployment.redis.url, deployment.redis.connect_deadline_s)
        place = Place(deployment, redis, log, name)
        log.info("service_started", name=name, health_port=port)
        follower = asyncio.create_task(follow_runs(place, role, serve, kinds))
        try:
            await _first(stopping.wait(), follower)
        finally:
            await end(follower)
            await redis.aclose()
            log.info("service_stopped", name=name)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def follow_runs(place: Place, role: str, serve: Serve, kinds: tuple[str, ...]) -> None:
    """Serve the active run of the deployment, then the next one, for ever; runs of other kinds are left alone."""
    runs = Runs(place.redis)
    await_redis = AwaitRedis(place.log, "", place.deployment.redis.outage_deadline_s)
    while True:
        record = await await_redis(runs.active)
        if record is None or record.state in ENDED or record.settings.kind not in kinds:
            await asyncio.sleep(POLL_S)
            continue
        try:
            await _serve_one(place, role, serve, record)
        except UNREACHABLE as error:  # the service joins the run again as soon as Redis is back
            place.log.warning("redis_unreachable", run=record.run, error=str(error))
        await asyncio.sleep(POLL_S)  # then again, if it has not ended: Redis may have lost its end


async def _serve_one(place: Place, role: str, serve: Serve, record: RunRecord) -> None:
    member, is_ready = f"{role}/{place.name}", asyncio.Event()
    place.log.info("run_joined", run=record.run)
    work = asyncio.ensure_future(serve(Serving(place, record, is_ready.set)))
    watch = asyncio.create_task(_until_ended(place, record.run, member, is_ready))
    try:
        await _first(work, watch)
        if work.done():
            await work
            await watch
    except (RunRejected, PluginError, SettingsError) as error:
        reason = f"{role}: {error}"
        place.log.error("run_rejected", run=record.run, reason=str(error))
        await_redis = AwaitRedis(place.log, record.run, place.deployment.redis.outage_deadline_s)
        await await_redis(lambda: Runs(place.redis).fail(record.run, reason))
    except (FencedOut, *UNREACHABLE):  # no failure of the role: another process has it, or Redis is away
        raise
    except Exception as error:  # a bug or a broken machine: this process ends, the next one tries again
        await _count_failure(place.redis, record.run, role, error)
        raise
    finally:
        try:
            await end(work, watch)
        finally:
            with contextlib.suppress(*UNREACHABLE):
                await withdraw(place.redis, record.run, member)
            place.log.info("run_left", run=record.run)


async def _count_failure(redis: Redis, run: str, role: str, error: Exception) -> None:
    """Fail a run that a role could not serve MAX_FAILURES times: nobody would ever end it otherwise."""
    with contextlib.suppress(*UNREACHABLE):
        failures = int(await redis.hincrby(Keys(run).counters, f"failures:{role}", 1))
        if failures >= MAX_FAILURES:
            await Runs(redis).fail(
                run, f"{role}: failed {failures} times, at last with {type(error).__name__}: {error}"
            )


async def _until_ended(place: Place, run: str, member: str, is_ready: asyncio.Event) -> None:
    runs = Runs(place.redis)
    outage = Outage(place.log, run, place.deployment.redis.outage_deadline_s)
    last_heartbeat = 0.0
    clock = asyncio.get_running_loop().time
    while True:
        try:
            record = await runs.get(run)
            if record is None or record.state in ENDED:
                return
            if is_ready.is_set() and clock() - last_heartbeat >= HEARTBEAT_S:
                await announce(place.redis, run, member)
                last_heartbeat = clock()
        except UNREACHABLE as error:
            await outage.wait(error)
        else:
            outage.over()
            await asyncio.sleep(POLL_S)


async def _first(*awaitables: Any) -> None:
    """Wait until one is done and raise what it raised; the others go on, unless they were coroutines."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, given in zip(tasks, awaitables, strict=True):
        if task in waiting and task is not given:
            task.cancel()
    for task in done:
        task.result()


def run_folder(deployment: Deployment, run: str) -> Path:
    """The folder of a run: checkpoints, export, summary."""
    folder = deployment.runs_folder / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder
