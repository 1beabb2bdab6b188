"""Rollouts of any groups -> batches -> scores: retries, waits through outages, and finds the one bad attempt."""

import asyncio
import random
from dataclasses import dataclass, field

from services.reward.remote.breaker import Breaker
from services.reward.remote.client import RewardClient
from services.reward.remote.protocol import Rejected, Unavailable, encode
from services.reward.score import Score, ScoringFailed
from shared.messages import Attempt
from shared.tasks import end

LINGER_S = 0.02
"""How long an attempt waits for others to share its request."""
CONCURRENCY = 8
"""Most requests under way."""
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One encoded attempt, and where its score goes."""

    item: str
    answer: "asyncio.Future[Score]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RemoteScorer:
    """Scores through a remote service. Work waits here while the service is out; only a batch that fails while the
    service answers others is at fault, and is halved until the bad attempt stands alone."""

    def __init__(self, run: str, client: RewardClient, breaker: Breaker, batch_size: int, max_tries: int) -> None:
        self._run, self._client, self._breaker = run, client, breaker
        self._batch_size, self._max_tries = batch_size, max_tries
        self._waiting: list[Asked] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._proven: str | None = None
        """An attempt that was scored before: if it fails now, the service is out."""

    async def score(self, attempt: Attempt) -> Score:
        """The score of one attempt; ScoringFailed if the service works but gives it none."""
        asked = Asked(encode(self._run, attempt))
        self._waiting.append(asked)
        if len(self._waiting) >= self._batch_size:
            self._send()
        elif len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(LINGER_S, self._send)
        return await asked.answer

    async def close(self) -> None:
        """Give up all calls under way."""
        await end(*self._calls)

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            call = asyncio.create_task(self._score_or_fail(batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _score_or_fail(self, batch: list[Asked]) -> None:
        try:
            await self._score(batch, self._max_tries)
        except Exception as error:  # noqa: BLE001  whoever waits for a score has to hear of it
            for asked in batch:
                _answer(asked, ScoringFailed(repr(error)))

    async def _score(self, batch: list[Asked], tries: int) -> None:
        tried = 0
        while True:
            try:
                scores = await self._breaker.call(lambda: self._ask([asked.item for asked in batch]))
            except Rejected as error:
                return await self._blame(batch, error)
            except Unavailable as error:
                tried += 1
                if tried >= tries and await self._works():
                    return await self._blame(batch, error)
            else:
                return self._deliver(batch, scores)
            longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**tried)
            await asyncio.sleep(random.uniform(0, longest))  # full jitter: callers that failed together come back apart

    async def _ask(self, items: list[str]) -> list[Score | ScoringFailed]:
        async with self._slots:
            return await self._client.score(items)

    async def _works(self) -> bool:
        proven = self._proven
        return proven is not None and await self._breaker.prove(lambda: self._client.score([proven]))

    async def _blame(self, batch: list[Asked], error: Exception) -> None:
        if len(batch) == 1:
            _answer(batch[0], ScoringFailed(f"the reward service at {self._client.name} gave no score: {error}"))
            return
        middle = len(batch) // 2
        await asyncio.gather(self._score(batch[:middle], 1), self._score(batch[middle:], 1))

    def _deliver(self, batch: list[Asked], scores: list[Score | ScoringFailed]) -> None:
        for asked, score in zip(batch, scores, strict=True):
            if isinstance(score, Score):
                self._proven = asked.item
                _answer(asked, score)
            else:
                _answer(asked, ScoringFailed(f"the reward service at {self._client.name} gave a wrong score: {score}"))


def _answer(asked: Asked, score: Score | ScoringFailed) -> None:
    if asked.answer.done():
        return  # nobody waits any more
    if isinstance(score, Score):
        asked.answer.set_result(score)
    else:
        asked.answer.set_exception(score)
