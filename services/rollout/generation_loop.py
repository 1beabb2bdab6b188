"""Prompts -> rollouts: receive as many groups as there are free slots, handle each one, settle it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.rollout.give_up_group import drop_dead, drop_group
from services.rollout.last_words import say
from services.rollout.refusals import GroupRejected, Superseded
from shared.await_redis import AwaitRedis
from shared.errors import WireError
from shared.logs import Log
from shared.messages import Event, Prompt, Rollout
from shared.redis_connection import UNREACHABLE
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.tasks import end
from shared.topology import EVENTS

BLOCK_S = 1.0
GRACE_S = 5.0
"""Seconds that groups in flight have to finish when the worker stops."""
LAST_S = 2.0
"""Seconds to tell the other workers which groups were let go of."""

MakeGroup = Callable[[Prompt], Awaitable[list[Rollout]]]
Forget = Callable[[Prompt], Sequence[str]]
"""The keys to delete when a group is forwarded."""


def nothing_to_forget(prompt: Prompt) -> Sequence[str]:
    """For groups of which nothing is kept while they are generated."""
    return ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How many groups one worker generates at once, and how many seconds each may take."""

    concurrency: int
    deadline_s: float


class GenerationLoop:
    """Generates the groups of one run, within its limits."""

    def __init__(
        self,
        prompts: Stream[Prompt],
        ledger: Ledger,
        make_group: MakeGroup,
        log: Log,
        limits: Limits,
        redis: AwaitRedis,
        forget: Forget = nothing_to_forget,
    ) -> None:
        self._prompts, self._ledger = prompts, ledger
        self._make_group, self._log = make_group, log
        self._await_redis, self._concurrency, self._deadline_s = redis, limits.concurrency, limits.deadline_s
        self._forget = forget
        self._in_flight: set[asyncio.Task[None]] = set()
        prompts.on_dead = self._on_dead

    async def run(self) -> None:
        """Work until cancelled; what is unfinished after a grace is left to be delivered again."""
        await self._await_redis(self._prompts.open)
        keeper = asyncio.create_task(self._prompts.keep_leases())
        try:
            while True:
                for message in await self._receive():
                    task = asyncio.create_task(self._handle(message))
                    self._in_flight.add(task)
                    task.add_done_callback(self._in_flight.discard)
        finally:
            await self._finish_what_is_nearly_done()
            try:
                await end(keeper, *self._in_flight)
            finally:
                await say(self._prompts.leave(), LAST_S)

    async def _receive(self) -> list[Message[Prompt]]:
        while len(self._in_flight) >= self._concurrency:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        free = self._concurrency - len(self._in_flight)
        return await self._await_redis(lambda: self._prompts.receive(free, BLOCK_S))

    async def _handle(self, message: Message[Prompt]) -> None:
        try:
            # a group that is kept has its own deadline: as long as there is something new, it goes on
            async with asyncio.timeout(None if self._forget(message.body) else self._deadline_s):
                rollouts = await self._make_group(message.body)
        except GroupRejected as error:
            await self._give_up(message, str(error))
        except Superseded as error:
            await self._leave(message, str(error))
        except asyncio.CancelledError:
            message.retry_later()  # the worker ends; the group is none that kills its workers
            raise
        except TimeoutError as error:
            await self._try_later(message, str(error) or f"not finished within {self._deadline_s:g} s")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the group is tried again, then dead
            self._log.exception("generate_failed", run=self._ledger.keys.run, group=message.body.group_id)
            await self._try_later(message, f"{type(error).__name__}: {error}")
        else:
            await self._settle(message, rollouts)

    async def _settle(self, message: Message[Prompt], rollouts: list[Rollout]) -> None:
        try:
            forget = self._forget(message.body)
            await self._await_redis(lambda: self._ledger.forward(message, rollouts, forget))
        except WireError as error:
            await self._give_up(message, str(error))

    async def _give_up(self, message: Message[Prompt], why: str) -> None:
        prompt = message.body
        self._log.warning("group_rejected", run=self._ledger.keys.run, group=prompt.group_id, row=prompt.row, why=why)
        await self._await_redis(lambda: drop_group(self._ledger, prompt, "rejected", why))
        await self._await_redis(message.ack)

    async def _leave(self, message: Message[Prompt], why: str) -> None:
        """Stop working on a group that another worker has; only one that is settled is acknowledged here."""
        group_id, keys = message.body.group_id, self._ledger.keys
        self._log.warning("group_left", run=keys.run, group=group_id, why=why)
        if await self._await_redis(lambda: self._ledger.redis.getbit(keys.emitted, group_id)):
            await self._await_redis(message.ack)
        else:
            message.retry_later()

    async def _try_later(self, message: Message[Prompt], why: str) -> None:
        """Let go of the group; it comes back when its lease has run out, and is dead after its last delivery."""
        group_id = message.body.group_id
        self._log.warning("group_retried", run=self._ledger.keys.run, group=group_id, why=why)
        events: Stream[Event] = Stream(self._prompts.redis, self._ledger.keys.run, EVENTS)
        event = Event(time.time(), "rollout", "group_retried", {"group": group_id, "why": why})
        message.retry_later()
        try:
            await self._prompts.redis.hincrby(self._ledger.keys.counters, "generate_retried", 1)
            await events.publish(event)
        except UNREACHABLE as error:
            self._log.warning("redis_unreachable", run=self._ledger.keys.run, error=str(error))

    async def _finish_what_is_nearly_done(self) -> None:
        until = time.monotonic() + GRACE_S
        while self._in_flight and (left := until - time.monotonic()) > 0:
            try:
                await asyncio.wait(self._in_flight, timeout=left)
            except asyncio.CancelledError:
                continue  # a service that ends repeats its cancellation; the grace is short in any case

    async def _on_dead(self, group_id: int | None, why: str) -> None:
        await drop_dead(self._ledger, self._prompts, self._log, group_id, why)
