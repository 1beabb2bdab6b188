"""Prompts without end -> groups through the worker's own path, and the gaps that their streams saw."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.churn.stack import Stack
from services.rollout.generate_group import GroupGenerator
from services.rollout.model_tokenizer import load_tokenizer
from services.rollout.partial_group import Partials
from services.rollout.read_answers import Sample
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler, Take
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.messages import Prompt, Rollout
from shared.run_settings import SamplingSettings
from shared.scripts import Ledger
from shared.tasks import end
from shared.topology import Keys

GROUP_SIZE = 2
LENGTHS = (100, 200, 400, 800, 1600)
"""Longest responses, in tokens; those beyond `rollout.partial_tokens` are streamed, the others come whole."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stream's silence between two pieces of one continuation."""

    start: float
    end: float
    """Seconds of the monotonic clock."""
    stream: int
    """Number of the continuation."""

    @property
    def seconds(self) -> float:
        return self.end - self.start


class WatchedSampler(Sampler):
    """The worker's sampler, with a look at the clock for every piece."""

    def __init__(self, router: RouterConnections, log: Log) -> None:
        super().__init__(router, log)
        self.gaps: list[Gap] = []
        self._streams = itertools.count()

    async def stream(self, input_ids: list[int], sampling: SamplingSettings, count: int, take: Take) -> None:
        """See Sampler."""
        last: dict[int, float] = {}
        numbers = [next(self._streams) for _ in range(count)]

        def watched(number: int, sample: Sample) -> None:
            now = time.monotonic()
            if number in last:
                self.gaps.append(Gap(last[number], now, numbers[number]))
            last[number] = now
            take(number, sample)

        await super().stream(input_ids, sampling, count, watched)


@dataclass
class Load:
    """What was asked for so far."""

    rollouts: list[Rollout] = field(default_factory=list[Rollout])
    failures: list[str] = field(default_factory=list[str])
    """Groups that a worker would have had to try again, or give up: why."""
    gaps: list[Gap] = field(default_factory=list[Gap])


class Clients:
    """Clients that each ask for one group after the other."""

    def __init__(self, stack: Stack, count: int, seed: int) -> None:
        self.load = Load()
        self._stack, self._count, self._seed = stack, count, seed
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def run(self) -> None:
        """Ask until `stop`; every group that was begun is finished."""
        settings, log = self._stack.settings.rollout, Log("rollout")
        ledger, run = Ledger(self._stack.redis, Keys(self._stack.settings.name)), self._stack.settings.name
        tokenizer = await asyncio.to_thread(load_tokenizer, Path(self._stack.settings.model.path), False, False)
        url, deadline_s = self._stack.deployment.router_url, settings.request_deadline_s
        async with RouterConnections(url, deadline_s) as router:
            redis = AwaitRedis(log, run)
            partials = Partials(
                ledger, log, "churn", settings.partial_tokens, settings.partial_seconds, deadline_s, redis
            )
            sampler = WatchedSampler(router, log)
            self.load.gaps = sampler.gaps
            groups = GroupGenerator(tokenizer, sampler, None, "churn", partials)
            self._tasks = [asyncio.create_task(self._ask(groups, deadline_s, n)) for n in range(self._count)]
            try:
                await asyncio.gather(*self._tasks)
            finally:
                await end(*self._tasks)

    def stop(self) -> None:
        """Begin no more groups."""
        self._stopping = True

    async def _ask(self, groups: GroupGenerator, deadline_s: float, client: int) -> None:
        for prompt in self._prompts(client):
            if self._stopping:
                return
            try:
                async with asyncio.timeout(deadline_s):
                    self.load.rollouts += await groups.generate(prompt)
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker would have lost time with it
                self.load.failures.append(f"{type(error).__name__}: {error}")
            await self._stack.redis.delete(*groups.forget(prompt) or ("none",))

    def _prompts(self, client: int) -> Iterator[Prompt]:
        draw = random.Random(f"{self._seed}-{client}")
        while True:
            text, longest = f"{draw.randrange(1000)}+{draw.randrange(1000)}=", draw.choice(LENGTHS)
            sampling = SamplingSettings(max_new_tokens=longest).model_dump()
            yield Prompt(next(self._numbers), "train", "sums", 0, text, GROUP_SIZE, sampling=sampling)
