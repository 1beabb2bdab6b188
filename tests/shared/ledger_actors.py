"""Workers, trainers and a person who act on a run in Redis, each move told to the model too."""

import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from redis.asyncio import Redis

from services.reward.attempts import Attempts
from services.reward.join_groups import GroupJoin
from services.reward.score import Score
from shared.accounts import margins
from shared.errors import FencedOut
from shared.messages import Attempt, DeadLetter, Event, GroupReady, Prompt, Rollout, StepCommit, StepIntent
from shared.rollout_parts import arrays_of
from shared.scripts import Ledger
from shared.streams import Delivery, Message, Stream, evaluation_of
from shared.topology import DEAD, GROUPS, PROMPTS, Keys
from tests.services.reward.reward_cases import rollout
from tests.shared.ledger_model import GROUP_SIZE, Model, StoredAttempt

T = TypeVar("T")
RUN, FEEDER = "r1", "feeder"
DELIVERY = Delivery(lease_s=0.0, max_deliveries=8)
"""No lease at all: whatever a worker holds, another one may take at any moment."""
EVENT = Event(0.0, "test", "happened")
LIMIT = 6
GROUPS_PER_STEP = 2


def verdict(group: Sequence[Attempt]) -> str | None:
    return "filtered" if group[0].group_id % 4 == 3 else None


class Actors:
    """Three workers of each kind, two trainers, one person."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.keys, self.model = redis, Keys(RUN), Model(LIMIT)
        self.ledger = Ledger(redis, self.keys)
        self.join = GroupJoin(self.ledger, verdict)
        self._born = 0
        self.generating: list[Worker[Prompt]] = []
        self.scoring: list[Worker[Attempt]] = []
        self.trainers: list[Trainer] = []

    async def open(self) -> None:
        await self.redis.set(self.keys.feeder_lease, FEEDER)
        self.generating = [Worker(self._prompts()) for _ in range(3)]
        self.scoring = [Worker(self._rollouts()) for _ in range(3)]
        self.trainers = [Trainer(self) for _ in range(2)]
        for stream in (self.generating[0].stream, self.scoring[0].stream, self.trainers[0].stream):
            await stream.open()
        await self.trainers[0].take_over()

    async def check(self) -> None:
        await self.model.check(self.redis, self.keys)

    async def release(self, count: int, is_eval: bool, times: int) -> None:
        first = len(self.model.groups)
        kind, pinned = ("eval", 3) if is_eval else ("train", None)
        prompts = [Prompt(first + i, kind, "sums", 0, "1+1=", GROUP_SIZE, pinned_version=pinned) for i in range(count)]
        expected = self.model.release(count, is_eval)
        limit = None if is_eval else LIMIT
        for _ in range(times):
            assert await self.ledger.release(FEEDER, first, limit, prompts, ("at", str(first + count))) == expected

    async def generate(self, worker: "Worker[Prompt]", times: int) -> None:
        if message := worker.next():
            rollouts = [self._attempt(message.body, number) for number in range(GROUP_SIZE)]
            if await self._is_pending(message):
                self.model.forward(message.body.group_id, [len(arrays_of(rollout)) for rollout in rollouts])
            for _ in range(times):
                await self.ledger.forward(message, rollouts)

    async def score(self, worker: "Worker[Attempt]", times: int, acknowledge: bool) -> None:
        if not (message := worker.next()):
            return
        attempt, stream = message.body, message.stream
        reason = verdict([attempt]) if attempt.kind != "eval" else None
        scored = self.join.entry(message, Score(1.0))
        size = len(scored.encoded)
        is_there = await self.redis.hget(self.keys.arrays(attempt.group_id), "of") == message.fields[b"f"]
        if scored.entry_id:  # Redis takes the payload from the stream, where it may be gone
            size += len(message.fields[b"m"]) - scored.replaces
            is_there = bool(await self.redis.xrange(stream.key, message.entry_id, message.entry_id))
        if is_there:
            self.model.join(attempt.group_id, attempt.attempt, StoredAttempt(size, margins(attempt)), reason)
        settled = self.model.groups[attempt.group_id].state != "open"
        for _ in range(times):
            assert await self.join.join([scored]) == {} or not (is_there or settled)
        if acknowledge:
            await message.ack()
        else:
            message.retry_later()

    async def give_up(self, worker: "Worker[Any]", times: int) -> None:
        if not (message := worker.next()):
            return
        if await self._is_pending(message):
            self.model.give_up(message.body.group_id)
        for _ in range(times):
            await message.dead_letter("no use")

    async def crash(self, workers: "list[Worker[Any]]", index: int) -> None:
        make = self._prompts if workers is self.generating else self._rollouts
        workers[index] = Worker(make())

    async def send_again(self, choice: int, times: int) -> None:
        letters = await self.letters()
        groups = sorted({letter.group_id for _, letter in letters if letter.group_id is not None})
        if not groups:
            return
        group_id = groups[choice % len(groups)]
        ours = [(entry_id, letter) for entry_id, letter in letters if letter.group_id == group_id]
        was_dead = self.model.groups[group_id].dead
        if was_dead:
            self.model.redrive(group_id, any(letter.stream == GROUPS.name for _, letter in ours))
        answers = [await self.ledger.redrive(group_id, ours, EVENT) for _ in range(times)]
        assert answers == [was_dead, False][:times]

    async def discard(self, choice: int, times: int) -> None:
        dead = [group_id for group_id, group in self.model.groups.items() if group.dead]
        if not dead:
            return
        group_id = dead[choice % len(dead)]
        ours = [entry_id for entry_id, letter in await self.letters() if letter.group_id == group_id]
        self.model.groups[group_id].dead = False
        answers = [await self.ledger.discard(group_id, ours) for _ in range(times)]
        assert answers == [len(ours), 0][:times]

    async def letters(self) -> list[tuple[str, DeadLetter]]:
        stream: Stream[DeadLetter] = Stream(self.redis, RUN, DEAD)
        return await stream.read(count=10_000)

    async def _is_pending(self, message: Message[Any]) -> bool:
        key, group, entry_id = message.stream.key, message.stream.spec.group or "", message.entry_id
        return bool(await self.redis.xpending_range(key, group, entry_id, entry_id, 1))

    def _attempt(self, prompt: Prompt, number: int) -> Rollout:
        self._born += 1  # another try of the same attempt has other tokens, from other versions
        tokens = 1 + self._born % 5
        return rollout(
            prompt.group_id,
            number,
            size=prompt.group_size,
            kind=prompt.kind,
            pinned_version=prompt.pinned_version,
            text=str(self._born),
            token_ids=np.full(tokens, self._born, np.int32),
            logprobs=np.zeros(tokens, np.float32),
            loss_mask=[(1, tokens)],
            weight_versions=[(self._born % 3, 1), (3, tokens - 1)],
            worker=f"w{self._born % 2}",
            reward=self._born % 4 or None,  # what has a reward before it is scored travels once more
        )

    def _prompts(self) -> Stream[Prompt]:
        self._born += 1
        stream: Stream[Prompt] = Stream(self.redis, RUN, PROMPTS, f"rollout-{self._born}", DELIVERY)

        async def on_dead(group_id: int | None, reason: str) -> None:
            assert group_id is not None
            is_eval = self.model.groups[group_id].is_eval
            self.model.give_up(group_id)
            await self.ledger.drop(
                group_id, "eval" if is_eval else "train", "dead", EVENT, (3, "sums") if is_eval else None
            )

        stream.on_dead = on_dead
        return stream

    def _rollouts(self) -> Attempts:
        self._born += 1
        return _ToldAttempts(self.redis, f"reward-{self._born}", self.model)


class _ToldAttempts(Attempts):
    """The reward service's stream; what it gives up by itself, the model is told."""

    def __init__(self, redis: Redis, name: str, model: Model) -> None:
        super().__init__(redis, RUN, name, DELIVERY)
        self._model = model

    async def give_up_group(self, fields: dict[bytes, bytes], reason: str) -> None:
        group_id = int(fields[b"g"])
        assert (evaluation_of(fields) is not None) == self._model.groups[group_id].is_eval
        self._model.give_up(group_id)
        await super().give_up_group(fields, reason)


class Worker(Generic[T]):
    """What one worker holds."""

    def __init__(self, stream: Stream[T]) -> None:
        self.stream, self.held = stream, list[Message[T]]()

    async def receive(self) -> None:
        self.held += await self.stream.receive(2, 0)

    def next(self) -> Message[T] | None:
        return self.held.pop(0) if self.held else None


class Trainer:
    """One process that is, was or will be the trainer."""

    def __init__(self, actors: Actors) -> None:
        self._actors, self.epoch = actors, 0
        self.stream: Stream[GroupReady] = Stream(actors.redis, RUN, GROUPS, "trainer", DELIVERY)
        self.stream.on_dead = self._give_up
        self.buffer: list[Message[GroupReady]] = []

    @property
    def is_it(self) -> bool:
        return self.epoch == max(trainer.epoch for trainer in self._actors.trainers)

    async def take_over(self) -> None:
        self.epoch = await self._actors.ledger.take_over()
        self.buffer = await self.stream.recover()

    async def receive(self) -> None:
        if self.is_it:
            self.buffer += await self.stream.receive(2, 0)

    async def intend(self, times: int) -> None:
        model = self._actors.model
        batch = self.buffer[:GROUPS_PER_STEP]
        if len(batch) < GROUPS_PER_STEP or len(model.steps) > model.committed:
            return
        ids = [message.body.group_id for message in batch]
        step = len(model.steps) + 1
        for _ in range(times):
            try:
                await self._actors.ledger.intend(
                    self.epoch, StepIntent(step, ids, step - 1, step), [message.entry_id for message in batch]
                )
            except FencedOut:
                assert not self.is_it
                return
        assert self.is_it
        self.buffer = self.buffer[GROUPS_PER_STEP:]
        model.steps.append(ids)
        for message in batch:
            model.groups[message.body.group_id].state = "intended"
            self.stream.release(message.entry_id)

    async def commit(self, times: int) -> None:
        model = self._actors.model
        if len(model.steps) == model.committed:
            return
        ids, step = model.steps[-1], len(model.steps)
        for time_ in range(times):
            try:
                commit = StepCommit(step, step, {"loss": 0.5})
                assert await self._actors.ledger.commit(self.epoch, commit, ids, tokens=1) == (time_ == 0)
            except FencedOut:
                assert not self.is_it
                return
        assert self.is_it
        model.committed += 1
        for group_id in ids:
            model.groups[group_id].state = "trained"

    async def forget(self, times: int) -> None:
        """What a durable checkpoint of the last committed step covers."""
        model = self._actors.model
        done = [group_id for step in model.steps[: model.committed] for group_id in step]
        for _ in range(times):
            try:
                await self._actors.ledger.forget(self.epoch, done)
            except FencedOut:
                assert not self.is_it
                return
        assert self.is_it
        for group_id in done:
            model.groups[group_id].forgotten = True

    async def drop_ready(self, times: int) -> None:
        if not self.is_it or not self.buffer:
            return
        message = self.buffer.pop(0)
        expected = self._actors.model.give_up_ready(message.body.group_id, "stale")
        event = Event(time.time(), "trainer", "dropped")
        for time_ in range(times):
            done = await self._actors.ledger.drop_ready(message.body.group_id, "stale", event, message.entry_id)
            assert done == (expected and time_ == 0)
        self.stream.release(message.entry_id)

    async def give_up(self, times: int) -> None:
        if self.is_it and self.buffer:
            message = self.buffer.pop(0)
            for _ in range(times):
                await message.dead_letter("no trainer can read it")

    async def _give_up(self, group_id: int | None, reason: str) -> None:
        assert group_id is not None
        self._actors.model.give_up_ready(group_id, "dead")
        await self._actors.ledger.drop_ready(group_id, "dead", EVENT, "0-0")
