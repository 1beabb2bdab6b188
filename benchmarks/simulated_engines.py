"""Prompts -> rollouts, in virtual time: each worker generates one group at once, at its own tokens a second.

The worker's side of the streams is real: it receives from the consumer group and forwards what it made.
"""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from redis.asyncio import Redis

from benchmarks.long_tail import LongTail
from benchmarks.virtual_time import Action, VirtualTime
from shared.messages import Prompt, Rollout, Spans, asked
from shared.scripts import Ledger
from shared.streams import Delivery, Message, Stream
from shared.topology import PROMPTS, Keys

FOREVER = Delivery(lease_s=1e6)
"""Leases are in real time, and nobody dies here."""


@dataclass
class ServedVersions:
    """Which version of the weights the engines served when."""

    since: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])

    def serve(self, version: int, now: float) -> None:
        self.since.append(now)
        self.versions.append(version)

    def spans(self, begun: float, tokens: int, rate: float, late_s: float = 0.0) -> Spans:
        """The version of each of `tokens` tokens, the k-th of which is sampled at `begun + k / rate`.

        `late_s`: how much later than the others this engine takes up a version.
        """
        begun -= late_s
        first = max(0, bisect_right(self.since, begun) - 1)
        ends = [min(tokens, int((until - begun) * rate)) for until in self.since[first + 1 :]] + [tokens]
        counts = np.diff([0, *ends])
        return [(version, int(n)) for version, n in zip(self.versions[first:], counts, strict=True) if n]


@dataclass(frozen=True, slots=True)
class Engine:
    """What one worker samples from."""

    tokens_per_s: float
    """Of each attempt."""
    late_s: float = 0.0
    """How much later than the others it takes up a version, as an engine does that lost touch with the trainer."""


@dataclass(frozen=True, slots=True)
class Work:
    """One group of one worker."""

    group_id: int
    worker: int
    begun: float
    ended: float


class SimulatedEngines:
    """All workers of a run. A free one takes the next prompt; the one that is free for longest comes first."""

    def __init__(
        self, redis: Redis, run: str, time: VirtualTime, tail: LongTail, fleet: list[Engine], on_rollouts: Action
    ) -> None:
        """`on_rollouts` is awaited whenever a group is on the stream."""
        self._time, self._tail, self._fleet, self._on_rollouts = time, tail, fleet, on_rollouts
        self._prompts: list[Stream[Prompt]] = [
            Stream(redis, run, PROMPTS, f"worker-{i}", FOREVER) for i in range(len(fleet))
        ]
        self._ledger = Ledger(redis, Keys(run))
        self._free = deque(range(len(fleet)))
        self.served = ServedVersions()
        self.work: list[Work] = []

    async def open(self) -> None:
        await self._prompts[0].open()

    async def take_prompts(self) -> None:
        """Give every free worker a group, while there are prompts."""
        while self._free:
            worker = self._free[0]
            received = await self._prompts[worker].receive(1, 0)
            if not received:
                return
            self._free.popleft()
            self._begin(worker, received[0])

    def _begin(self, worker: int, message: Message[Prompt]) -> None:
        prompt = message.body
        lengths = self._tail.lengths(prompt.group_id, prompt.group_size)
        seconds = float(lengths.max()) / self._fleet[worker].tokens_per_s
        self.work.append(Work(prompt.group_id, worker, self._time.now, self._time.now + seconds))
        self._time.plan(seconds, partial(self._finish, worker, message, self._time.now, lengths.tolist()))

    async def _finish(self, worker: int, message: Message[Prompt], begun: float, lengths: list[int]) -> None:
        engine = self._fleet[worker]
        spans = [self.served.spans(begun, length, engine.tokens_per_s, engine.late_s) for length in lengths]
        rollouts = [
            _rollout(message.body, attempt, length, versions, worker)
            for attempt, (length, versions) in enumerate(zip(lengths, spans, strict=True))
        ]
        await self._ledger.forward(message, rollouts)
        self._free.append(worker)
        await self._on_rollouts()
        await self.take_prompts()


def _rollout(prompt: Prompt, attempt: int, length: int, versions: Spans, worker: int) -> Rollout:
    return Rollout(
        **asked(prompt),
        attempt=attempt,
        prompt_ids=np.zeros(1, np.int32),
        token_ids=np.zeros(length, np.int32),
        logprobs=np.zeros(length, np.float32),
        loss_mask=[(1, length)],
        weight_versions=versions,
        finish_reason="stop",
        text="",
        worker=f"worker-{worker}",
        seconds=0.0,
    )
