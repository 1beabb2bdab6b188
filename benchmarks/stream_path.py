"""Prompts -> groups fetched by a trainer, through the services' own code, with the time of each hop."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
from redis.asyncio import Redis

from services.reward.attempts import Attempts
from services.reward.group_filter import keep_all
from services.reward.join_groups import GroupJoin
from services.reward.score import Score
from services.reward.worker import BATCH
from services.trainer.fetch_payloads import fetch_rollouts
from shared.messages import Attempt, Codec, GroupReady, Prompt, Rollout, StepCommit, StepIntent
from shared.rollout_parts import Parts, arrays_of
from shared.scripts import Ledger
from shared.streams import Delivery, Message, Stream
from shared.topology import GROUPS, PROMPTS, Keys

RUN, FEEDER = "benchmark", "feeder"
VOCABULARY = 151_936
TEXT_BYTES_PER_TOKEN = 3
STEPS_AHEAD = 2
"""Steps' groups that are under way."""
T = TypeVar("T")


def sample_rollout(group_size: int, tokens: int) -> Rollout:
    """An attempt as an engine makes it: random ids and log-probabilities, two weight versions, text."""
    draw = np.random.default_rng(0)
    return Rollout(
        group_id=0,
        attempt=0,
        group_size=group_size,
        kind="train",
        dataset="sums",
        row=0,
        prompt="What is 17 + 25? Think step by step. " * 4,
        label="42",
        metadata={"source": "benchmark"},
        prompt_ids=draw.integers(0, VOCABULARY, 64, dtype=np.int32),
        token_ids=draw.integers(0, VOCABULARY, tokens, dtype=np.int32),
        logprobs=-draw.random(tokens, dtype=np.float32),
        loss_mask=[(1, tokens)],
        weight_versions=[(3, tokens // 2), (4, tokens - tokens // 2)],
        finish_reason="stop",
        text="".join(map(chr, draw.integers(32, 127, tokens * TEXT_BYTES_PER_TOKEN))),
        worker="benchmark-1",
        seconds=12.5,
    )


def payload(rollout: Rollout) -> bytes:
    """An attempt in one piece, as the bare loop moves it."""
    return Codec[Rollout](Rollout).encode(rollout)


def parts(rollout: Rollout) -> Parts:
    """An attempt in its two pieces, as the real path stores it."""
    return Codec[Attempt](Attempt).encode(rollout), arrays_of(rollout)


class RealPath:
    """A feeder, a rollout worker, a reward worker and a trainer of one run, in one process."""

    def __init__(self, redis: Redis, rollout: Rollout, groups_per_step: int) -> None:
        self.redis, self.keys, self._rollout, self._batch = redis, Keys(RUN), rollout, groups_per_step
        self.ledger = Ledger(redis, self.keys)
        delivery = Delivery()
        self._prompts: Stream[Prompt] = Stream(redis, RUN, PROMPTS, "rollout-1", delivery)
        self._attempts = Attempts(redis, RUN, "reward-1", delivery)
        self._join = GroupJoin(self.ledger, keep_all)
        self._ready: Stream[GroupReady] = Stream(redis, RUN, GROUPS, "trainer", delivery)
        self._room = asyncio.Semaphore(STEPS_AHEAD)
        self._epoch = self._released = self._step = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Of each call, by hop."""

    async def open(self) -> None:
        await self.redis.set(self.keys.feeder_lease, FEEDER)
        for stream in (self._prompts, self._attempts, self._ready):
            await stream.open()
        self._epoch = await self.ledger.take_over()

    async def run(self, steps: int) -> None:
        """So many steps' groups, from their release to the trainer's fetch and the commit; all services at once."""
        await asyncio.gather(self._generate_all(steps), self._score_all(steps), self._train_all(steps))

    async def _generate_all(self, steps: int) -> None:
        for _ in range(steps):
            await self._room.acquire()
            await self._release()
            left = self._batch
            while left:
                for message in await self._timed("receive prompt", self._prompts.receive(left, 1)):
                    left -= 1
                    rollouts = self._generate(message.body)
                    await self._timed("forward rollouts", self.ledger.forward(message, rollouts))

    async def _score_all(self, steps: int) -> None:
        left = steps * self._batch * self._rollout.group_size
        while left:
            left -= await self._score(min(left, BATCH))

    async def _train_all(self, steps: int) -> None:
        for _ in range(steps):
            groups: list[Message[GroupReady]] = []
            while len(groups) < self._batch:
                groups += await self._timed("receive group", self._ready.receive(self._batch - len(groups), 1))
            await self._train(groups)
            self._room.release()

    async def retain(self) -> None:
        """What the trainer deletes when a checkpoint covers all steps so far."""
        entries = await self.redis.xrange(self.keys.stream(GROUPS))
        await self.ledger.forget(self._epoch, [int(fields[b"g"]) for _, fields in cast(list[Any], entries)])
        await self.redis.xtrim(self.keys.stream(GROUPS), maxlen=0)

    async def _release(self) -> None:
        size, first = self._rollout.group_size, self._released
        prompts = [Prompt(first + i, "train", "sums", i, "17 + 25 =", size, "42") for i in range(self._batch)]
        self._released += self._batch
        at = ("train", str(self._released))
        assert await self._timed("release", self.ledger.release(FEEDER, first, self._released, prompts, at))

    def _generate(self, prompt: Prompt) -> list[Rollout]:
        return [replace(self._rollout, group_id=prompt.group_id, attempt=i) for i in range(prompt.group_size)]

    async def _score(self, count: int) -> int:
        messages = await self._timed("receive attempts", self._attempts.receive(count, 1))
        if not messages:
            return 0
        attempts = [self._join.entry(message, Score(1.0)) for message in messages]
        pending = await self._timed("check", self._attempts.still_pending(messages))
        assert all(pending)
        failures = await self._timed("join and emit", self._join.join(attempts))
        assert not failures, failures
        await self._timed("acknowledge", self._attempts.acknowledge(messages))
        return len(messages)

    async def _train(self, groups: list[Message[GroupReady]]) -> None:
        assert len(groups) == self._batch
        self._step += 1
        ids = [group.body.group_id for group in groups]
        intent = StepIntent(self._step, ids, self._step - 1, self._step)
        entry_ids = [group.entry_id for group in groups]
        await self._timed("intend", self.ledger.intend(self._epoch, intent, entry_ids))
        for group in groups:
            self._ready.release(group.entry_id)
        fetched = await self._timed("fetch", fetch_rollouts(self.redis, self.keys, ids))
        assert len(fetched) == len(ids) * self._rollout.group_size
        commit = StepCommit(self._step, self._step, {"loss": 0.0})
        await self._timed("commit", self.ledger.commit(self._epoch, commit, ids, tokens=0))

    async def _timed(self, hop: str, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        answer = await call
        self.seconds[hop].append(time.perf_counter() - began)
        return answer
