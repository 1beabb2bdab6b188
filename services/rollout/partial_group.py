"""Tokens of unfinished attempts -> Redis, a chunk at a time; whoever takes a group over continues from there."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from services.rollout.last_words import say
from services.rollout.partial_attempt import PartialAttempt, read_chunks
from services.rollout.refusals import GroupRejected, Superseded
from shared.await_redis import WAIT_S, AwaitRedis
from shared.errors import WireError
from shared.logs import Log
from shared.messages import Codec, Event, Prompt, TokenChunk
from shared.redis_connection import UNREACHABLE
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS

T = TypeVar("T")
LAST_S = 2.0
"""Seconds that the last chunks of a group have to get to Redis when its work ends early."""
CODEC: Codec[TokenChunk] = Codec(TokenChunk)


@dataclass(frozen=True, slots=True)
class Partials:
    """Where unfinished attempts of a run are kept, and how often they are stored."""

    ledger: Ledger
    log: Log
    worker: str
    tokens: int
    """New tokens of an attempt after which it is stored; 0 stores none."""
    seconds: float
    """Seconds after which it is stored though it has fewer."""
    deadline_s: float
    """Seconds without anything new in a group after which its work has failed."""
    redis: AwaitRedis

    def keys(self, group_id: int) -> tuple[str, str]:
        """What is to be deleted with the group's forwarding."""
        return self.ledger.keys.partial(group_id), self.ledger.keys.partial_owner(group_id)

    async def take_over(self, prompt: Prompt) -> "PartialGroup":
        """Become the one worker that appends to the group's record, and read what it has."""
        owner, (partial, owner_key) = f"{self.worker}:{uuid.uuid4().hex}", self.keys(prompt.group_id)
        connection = self.ledger.redis

        async def take() -> list[tuple[bytes, dict[bytes, bytes]]]:
            async with connection.pipeline(transaction=True) as pipe:
                pipe.set(owner_key, owner)
                pipe.xrange(partial)
                return (await pipe.execute())[1]

        entries = await self.redis(take)
        group = PartialGroup(self, prompt, owner, self._decode(prompt, entries))
        if group.tokens:
            self.log.info(
                "group_resumed", run=self.ledger.keys.run, group=prompt.group_id, tokens=group.tokens, owner=owner
            )
        return group

    def _decode(self, prompt: Prompt, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[TokenChunk]:
        chunks: list[TokenChunk] = []
        for _, fields in entries:
            try:
                chunks.append(CODEC.decode(fields.get(b"m", b"")))
            except WireError as error:  # what comes after it has a gap before it, and is passed over
                self.log.warning("chunk_unreadable", run=self.ledger.keys.run, group=prompt.group_id, reason=str(error))
        return chunks


class PartialGroup:
    """The unfinished attempts of one group, while this worker has it."""

    def __init__(self, partials: Partials, prompt: Prompt, owner: str, chunks: list[TokenChunk]) -> None:
        self._partials, self._prompt, self._owner = partials, prompt, owner
        self._changed = asyncio.Event()
        self._stored_at = self._changed_at = time.monotonic()
        recorded = read_chunks(chunks)
        self.attempts = [
            PartialAttempt(attempt, recorded.get(attempt, []), self._note_change)
            for attempt in range(prompt.group_size)
        ]

    @property
    def tokens(self) -> int:
        return sum(attempt.tokens for attempt in self.attempts)

    async def keep(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, and store what it generates meanwhile; what is there when it fails or ends early, too.

        Raises:
            Superseded: another worker has the group now; the work was ended.
            TimeoutError: nothing new has come for too long.
        """
        making, storing = asyncio.ensure_future(work), asyncio.ensure_future(self._store_as_it_grows())
        try:
            await asyncio.wait({making, storing}, return_when=asyncio.FIRST_COMPLETED)
            if storing.done():
                storing.result()
            return await making
        except (GroupRejected, Superseded):
            raise
        except BaseException:
            await say(self._store_the_rest(making, storing), LAST_S)
            raise
        finally:
            await end(making, storing)

    async def _store_as_it_grows(self) -> None:
        while True:
            await self._wait_until_due()
            await self._store()

    async def _wait_until_due(self) -> None:
        """Wait for enough tokens in an attempt, for the end of a reply, or until something has waited long enough."""
        partials = self._partials
        while True:
            self._changed.clear()
            if any(a.unstored >= partials.tokens or a.has_ended for a in self.attempts):
                return
            now = time.monotonic()
            left = self._changed_at + partials.deadline_s - now
            if left <= 0:
                raise TimeoutError(f"nothing new within {partials.deadline_s:g} s")
            if any(attempt.to_store for attempt in self.attempts):
                left = min(left, self._stored_at + partials.seconds - now)
                if left <= 0:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _note_change(self) -> None:
        self._changed_at = time.monotonic()
        self._changed.set()

    async def _store(self) -> None:
        """Append what is new. It is repeated while Redis is away: a chunk that is stored twice does no harm."""
        await self._tell_mismatches()
        ledger, log = self._partials.ledger, self._partials.log
        while chunks := [chunk for attempt in self.attempts for chunk in attempt.take_chunks()]:
            try:
                if not await ledger.append_chunks(self._prompt.group_id, self._owner, chunks):
                    raise Superseded(f"group {self._prompt.group_id} belongs to another worker now")
                break
            except UNREACHABLE as error:
                log.warning("redis_unreachable", run=ledger.keys.run, error=str(error))
                for attempt in self.attempts:
                    attempt.store_again()
                await asyncio.sleep(WAIT_S)
        self._stored_at = time.monotonic()

    async def _store_the_rest(self, making: "asyncio.Future[Any]", storing: "asyncio.Future[Any]") -> None:
        """End the work and store what it has made."""
        await end(making, storing)
        with contextlib.suppress(Superseded):
            await self._store()

    async def _tell_mismatches(self) -> None:
        for attempt in self.attempts:
            if attempt.mismatches:
                attempt.mismatches = 0
                await self._tell_mismatch(attempt.attempt)

    async def _tell_mismatch(self, attempt: int) -> None:
        ledger, log = self._partials.ledger, self._partials.log
        detail: dict[str, Any] = {"group": self._prompt.group_id, "attempt": attempt}
        log.warning("partial_mismatch", run=ledger.keys.run, **detail)
        events: Stream[Event] = Stream(ledger.redis, ledger.keys.run, EVENTS)
        with contextlib.suppress(*UNREACHABLE):
            await events.publish(Event(time.time(), "rollout", "partial_mismatch", detail))
