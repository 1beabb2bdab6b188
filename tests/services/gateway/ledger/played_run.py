"""A run whose services are played: groups are released, generated, scored, dropped and trained as the real ones do."""

import time
from typing import Any

import numpy as np
from redis.asyncio import Redis

from services.gateway.feeder_lease import FeederLease
from shared.joining import ScoredAttempt
from shared.messages import Attempt, Event, GroupReady, Prompt, Rollout, StepCommit, StepIntent, asked
from shared.runs import RunRecord, Runs
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, RUNS, Keys
from tests.services.gateway.gateway_cases import run_settings

SIZE = 2


def rollout(prompt: Prompt, attempt: int, tokens: int = 3, version: int = 0, worker: str = "w0") -> Rollout:
    return Rollout(
        **asked(prompt),
        attempt=attempt,
        prompt_ids=np.array([1, 2], np.int32),
        token_ids=np.arange(tokens, dtype=np.int32),
        logprobs=np.zeros(tokens, np.float32),
        loss_mask=[(1, tokens)],
        weight_versions=[(version, tokens)],
        finish_reason="stop",
        text="2",
        worker=worker,
        seconds=0.1,
        reward=0.5,
    )


def scored(message: Message[Attempt]) -> ScoredAttempt:
    """The attempt as it was made, reward included."""
    return ScoredAttempt(message.body, message.fields[b"f"], message.fields[b"m"])


class PlayedRun:
    """One run and the hands of all its services."""

    def __init__(self, redis: Redis, record: RunRecord) -> None:
        self.redis, self.record, self.keys = redis, record, Keys(record.run)
        self.ledger = Ledger(redis, self.keys)
        self.lease = FeederLease(redis, self.keys)
        self.prompts: Stream[Prompt] = Stream(redis, record.run, PROMPTS, "w0")
        self.rollouts: Stream[Attempt] = Stream(redis, record.run, ROLLOUTS, "r0")
        self.ready: Stream[GroupReady] = Stream(redis, record.run, GROUPS, "trainer")
        self.epoch = 0

    @classmethod
    async def open(cls, redis: Redis, **changes: Any) -> "PlayedRun":
        settings, now = run_settings(**{"rollout": {"max_staleness": 8}, **changes}), time.time()
        # never queued: a gateway on the same Redis would feed it
        fields: dict[Any, Any] = {
            "settings": settings.model_dump_json(), "state": "running", "reason": "", "created": now, "started": now,
        }  # fmt: skip
        await redis.hset(Keys("r1").record, mapping=fields)
        await redis.zadd(RUNS, {"r1": now})
        record = await Runs(redis).get("r1")
        assert record is not None
        played = cls(redis, record)
        await played.lease.take()
        for stream in (played.prompts, played.rollouts, played.ready):
            await stream.open()
        played.epoch = await played.ledger.take_over()
        await played.ledger.advance("weight_version", 0)
        return played

    async def release(self, count: int, kind: str = "train") -> list[Prompt]:
        first = (await self.ledger.counters()).get("next_group_id", 0)
        is_eval = kind == "eval"
        prompts = [
            Prompt(i, "eval" if is_eval else "train", "held" if is_eval else "sums", i, f"{i}+1=", SIZE, label="2",
                   pinned_version=0 if is_eval else None)
            for i in range(first, first + count)
        ]  # fmt: skip
        await self.ledger.release(self.lease.token, first, None if is_eval else 10**6, prompts, ("train", "{}"))
        return prompts

    async def generate(self, count: int) -> list[Prompt]:
        """Prompts to rollouts."""
        messages = await self.prompts.receive(count, 0.01)
        for message in messages:
            attempts = [rollout(message.body, n, 3 + n, worker=f"w{n}") for n in range(message.body.group_size)]
            await self.ledger.forward(message, attempts)
        return [message.body for message in messages]

    async def score(self, count: int) -> list[Message[Attempt]]:
        """So many attempts are scored, their groups emitted when they are complete."""
        messages = await self.rollouts.receive(count, 0.01)
        for message in messages:
            (joined,) = await self.ledger.join([scored(message)])
            if joined.state == "complete":
                await self.emit(message.body)
            await message.ack()
        return messages

    async def emit(self, one: Attempt) -> None:
        ready = GroupReady(one.group_id, one.kind, one.dataset, one.row, [5, 6], [0.5, 0.5], 0, 0, one.pinned_version)
        if one.kind == "eval":
            await self.ledger.tally(ready, off_version=False)
        else:
            await self.ledger.emit((ready, 7))

    async def intend(self, step: int, count: int) -> StepIntent:
        groups = await self.ready.receive(count, 0.01)
        intent = StepIntent(step, [group.body.group_id for group in groups], step - 1, step)
        await self.ledger.intend(self.epoch, intent, [group.entry_id for group in groups])
        return intent

    async def commit(self, intent: StepIntent) -> None:
        commit = StepCommit(intent.step, intent.step, {"loss": 0.5})
        await self.ledger.commit(self.epoch, commit, intent.group_ids, 14)
        await self.ledger.advance("weight_version", intent.step)

    async def drop(self, group_id: int, reason: str = "filter", kind: str = "train") -> bool:
        event = Event(time.time(), "reward", "dropped", {"group": group_id, "reason": reason})
        evaluation = (0, "held") if kind == "eval" else None
        return await self.ledger.drop(group_id, kind, reason, event, evaluation)

    async def to_ready(self, groups: int) -> None:
        """Release so many groups and bring them to the stream of complete ones."""
        await self.release(groups)
        await self.generate(groups)
        await self.score(groups * SIZE)

    async def everywhere(self) -> None:
        """Groups in every state and place: 0-3 trained, 4-7 in a step, 8 ready, 9 dropped, 10 dead, 11-12 evaluated,
        13 joining, 14 on rollouts, 15-17 on prompts."""
        await self.to_ready(9)
        await self.commit(await self.intend(1, 4))
        await self.intend(2, 4)
        await self.release(2)
        await self.generate(2)
        await self.score(1)
        await self.drop(9)
        await self.score(2)
        await self.drop(10, "dead")
        await self.score(1)
        await self.release(2, "eval")
        await self.generate(2)
        await self.score(4)
        await self.release(2)
        await self.generate(2)
        await self.score(1)
        await self.release(3)
