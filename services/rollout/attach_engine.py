"""The address of an SGLang server that somebody else keeps -> its lives, one after the other, for the sidecar to serve.

Nobody but its owner starts or ends it. Its death, and whatever does not fit the run any more, is an outage: the sidecar
looks again until the server is back, and that is another life, which holds no version.
"""

import asyncio
import contextlib
import secrets
import time
from typing import ClassVar

import httpx

from services.rollout.check_attached import EngineAway, EngineUnfit, ServerFacts, check_attached
from services.rollout.engine_calls import HEALTH_S, EngineCalls, EngineError
from services.rollout.launch_engine import UNHEALTHY_S, EngineDied
from services.rollout.reach_files import check_reach
from shared.errors import RunRejected
from shared.messages import Event
from shared.redis_connection import UNREACHABLE
from shared.service import Serving
from shared.streams import Stream
from shared.topology import EVENTS

LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Between two looks at a server that is away. It is short: whoever starts it again waits for it."""
INFO = "/model_info"
"""Answers while the server is up, and names the version. `/health` may generate a token, and fail in a pause."""


class AttachedEngine:
    """One life of a server that somebody else keeps."""

    was_there_before: ClassVar[bool] = True

    def __init__(self, url: str, facts: ServerFacts, calls: EngineCalls) -> None:
        self.url, self.device, self.ranks, self.calls = url, facts.device, facts.ranks, calls
        self.shares_prefixes, self.incarnation = facts.shares_prefixes, secrets.token_hex(4)

    async def watch(self) -> None:
        """Returns never; EngineDied when nothing listens there, it has not answered for UNHEALTHY_S, or was restarted.

        A server that was restarted between two looks betrays itself: its weights have not the name that we gave them.
        """
        answered = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            named = self.calls.version
            try:
                answer = await self.calls.ask(INFO, HEALTH_S)
            except httpx.ConnectError as error:
                raise EngineDied(f"the engine at {self.url} is gone ({error}); its owner has to start it") from error
            except httpx.HTTPError:
                if time.monotonic() - answered > UNHEALTHY_S:
                    raise EngineDied(f"the engine at {self.url} has not answered for {UNHEALTHY_S:g} s") from None
                continue
            answered = time.monotonic()
            found = str(answer.json().get("weight_version")) if answer.status_code == 200 else named
            if named is not None and named == self.calls.version and found != named:
                raise EngineDied(
                    f"the engine at {self.url} serves weights named {found!r} and was given {named!r}: it was"
                    " restarted, or somebody else updates it"
                )


class Attached:
    """The lives of one server, as long as a run is served."""

    def __init__(self, serving: Serving, url: str) -> None:
        """RunRejected if only engines of our own can serve the run."""
        self.url = url
        self._serving, self._settings = serving, serving.record.settings
        if self._settings.lora.is_served:
            raise RunRejected(
                f'lora.publish is "adapter", and the engine at {url}, which somebody else keeps, would not tell which'
                ' adapter answered; write lora.publish = "merged"'
            )
        self._starting = serving.record.state == "starting"
        self._pause_s = FIRST_PAUSE_S
        self._engine: AttachedEngine | None = None

    async def start(self) -> AttachedEngine:
        """Wait for the server, however long it takes, until it fits.

        Raises:
            RunRejected: the run is starting, and the server does not fit it.
        """
        told, settings = "", self._settings
        while True:
            calls = EngineCalls(self.url, health=INFO)
            try:
                facts = await check_attached(calls, self.url, settings.model, settings.engine, settings.weights)
                await check_reach(self.url, settings.weights)
            except (EngineAway, EngineUnfit) as error:
                await calls.close()
                if self._starting and isinstance(error, EngineUnfit):
                    raise RunRejected(str(error)) from error
                if str(error) != told:
                    await self._tell("engine_awaited", str(error))
                told = str(error)
                await asyncio.sleep(self._longer())
                continue
            self._starting = False
            self._log_facts(facts)
            self._engine = AttachedEngine(self.url, facts, calls)
            return self._engine

    async def stop(self, grace_s: float = 0) -> None:
        """Let go of the server, which goes on; in the middle of an update it stays paused until the next version."""
        del grace_s  # nothing is ended
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.calls.close()

    async def release(self) -> None:
        """The run is over: nothing of it stays in the server but its weights."""
        if self._engine is not None:
            with contextlib.suppress(EngineError):
                await self._engine.calls.leave_group()
        await self.stop()

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """Seconds to wait before the next look; there is no end of looks."""
        del reason
        if served:
            self._pause_s = FIRST_PAUSE_S
        return self._longer()

    def _longer(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s

    def _log_facts(self, facts: ServerFacts) -> None:
        log, run = self._serving.place.log, self._serving.run
        log.info("engine_attached", run=run, url=self.url, sglang=facts.release, model=facts.model, ranks=facts.ranks)
        if facts.other:
            log.warning("engine_arguments_differ", run=run, url=self.url, names=", ".join(facts.other))

    async def _tell(self, event: str, reason: str) -> None:
        place = self._serving.place
        place.log.warning(event, run=self._serving.run, url=self.url, reason=reason)
        try:
            events: Stream[Event] = Stream(self._serving.redis, self._serving.run, EVENTS)
            await events.publish(Event(time.time(), "engine", event, {"engine": place.name, "reason": reason}))
        except UNREACHABLE as error:
            place.log.warning("redis_unreachable", run=self._serving.run, error=str(error))
