"""Rollouts -> scores -> groups: take what arrived, score each attempt, join, and acknowledge last."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.reward.attempts import Attempts
from services.reward.join_groups import GroupJoin
from services.reward.tell import Tell
from shared.await_redis import AwaitRedis
from shared.joining import ScoredAttempt
from shared.messages import Attempt
from shared.streams import Message
from shared.tasks import end

BATCH = 64
"""Most attempts that are received or joined at once."""
MAX_HELD = 1024
"""Most attempts that are received and not acknowledged."""
BLOCK_S = 1.0
STOP_DEADLINE_S = 3.0

ScoreAttempt = Callable[[Message[Attempt]], Awaitable[list[ScoredAttempt]]]
"""Scores one attempt; returns what is to be joined: this attempt, its whole group, or nothing yet."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A message whose attempt was scored, and what it adds to groups."""

    message: Message[Attempt]
    attempts: list[ScoredAttempt]
    error: Exception | None = None


class Worker:
    """Serves one run until it is cancelled."""

    def __init__(
        self,
        attempts: Attempts,
        available: Callable[[], Awaitable[None]],
        score: ScoreAttempt,
        groups: GroupJoin,
        redis: AwaitRedis,
        tell: Tell,
    ) -> None:
        self._attempts, self._available, self._score_attempt = attempts, available, score
        self._groups, self._redis, self._tell = groups, redis, tell
        self._scoring: set[asyncio.Task[None]] = set()
        self._scored: asyncio.Queue[Scored] = asyncio.Queue()
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()

    async def run(self) -> None:
        """Receive, score and settle until cancelled; then hand back what is not settled."""
        loops = (self._receive(), self._settle(), self._attempts.keep_leases())
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _to_its_end(self._stop(tasks))

    async def _receive(self) -> None:
        while True:
            await self._available()
            await self._room.wait()
            for message in await self._redis(self._take):
                self._held += 1
                task = asyncio.create_task(self._score(message))
                self._scoring.add(task)
                task.add_done_callback(self._scoring.discard)
            if self._held >= MAX_HELD:
                self._room.clear()

    async def _take(self) -> list[Message[Attempt]]:
        return await self._attempts.receive(min(BATCH, MAX_HELD - self._held), BLOCK_S)

    async def _score(self, message: Message[Attempt]) -> None:
        try:
            scored = Scored(message, await self._score_attempt(message))
        except Exception as error:  # noqa: BLE001  the reward is a user's; the attempt is tried again
            scored = Scored(message, [], error)
        self._scored.put_nowait(scored)

    async def _settle(self) -> None:
        while True:
            batch = [await self._scored.get()]
            while len(batch) < BATCH and not self._scored.empty():
                batch.append(self._scored.get_nowait())
            await self._settle_batch(batch)
            self._held -= len(batch)
            self._room.set()

    async def _settle_batch(self, batch: list[Scored]) -> None:
        pending, unsettled = await self._redis(lambda: self._join(batch))
        settled: list[Message[Attempt]] = []
        for scored, is_pending in zip(batch, pending, strict=True):
            if not is_pending:
                self._attempts.release(scored.message.entry_id)
                continue
            error = scored.error or unsettled.get(scored.message.body.group_id)
            if error is None:
                settled.append(scored.message)
            else:
                await self._fail(scored.message, error)
        await self._redis(lambda: self._attempts.acknowledge(settled))

    async def _join(self, batch: list[Scored]) -> tuple[list[bool], dict[int, Exception]]:
        pending = await self._attempts.still_pending([scored.message for scored in batch])
        ours = [scored for scored, is_pending in zip(batch, pending, strict=True) if is_pending]
        attempts = [attempt for scored in ours for attempt in scored.attempts]
        return pending, await self._groups.join(attempts) if attempts else {}

    async def _fail(self, message: Message[Attempt], error: Exception) -> None:
        reason = str(error) or type(error).__name__
        deliveries = await self._redis(lambda: self._attempts.fail(message, reason))
        ids = {"group": message.body.group_id, "attempt": message.body.attempt, "deliveries": deliveries}
        await self._tell("scoring_failed", {**ids, "error": reason})

    async def _stop(self, tasks: "list[asyncio.Task[None]]") -> None:
        await end(*tasks, *self._scoring)
        await asyncio.wait_for(self._attempts.hand_back(), STOP_DEADLINE_S)


async def _to_its_end(work: Awaitable[None]) -> None:
    """Finish the work though cancellations go on arriving; it has a deadline of its own."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
    task.exception()  # a worker that ends without handing back leaves the rest to the leases
