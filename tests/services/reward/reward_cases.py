"""What the tests of the reward service share: attempts, a running worker, and what lies in Redis afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
from redis.asyncio import Redis

from services.reward.attempts import Attempts
from services.reward.functions import exact_match
from services.reward.group_filter import GroupFilter, keep_all
from services.reward.join_groups import GroupJoin
from services.reward.score import Reward
from services.reward.score_attempts import scoring
from services.reward.tell import teller
from services.reward.worker import Worker
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.messages import Attempt, Codec, DeadLetter, GroupReady, Rollout
from shared.rollout_parts import arrays_of
from shared.scripts import Ledger
from shared.streams import Delivery, Stream, entry_of
from shared.tasks import end
from shared.topology import DEAD, EVENTS, GROUPS, ROLLOUTS, Keys

RUN = "r1"
LOG = Log("reward")
EXACT = Reward(exact_match.score)


def rollout(group_id: int, attempt: int, text: str = "2", size: int = 2, **fields: Any) -> Rollout:
    """An attempt at "1+1=" of three prompt and two response tokens, sampled by version 4."""
    one = Rollout(
        group_id=group_id,
        attempt=attempt,
        group_size=size,
        kind="train",
        dataset="sums",
        row=group_id,
        prompt="1+1=",
        label="2",
        metadata={},
        prompt_ids=np.asarray([1, 2, 3], np.int32),
        token_ids=np.asarray([7, 8], np.int32),
        logprobs=np.asarray([-0.1, -0.2], np.float32),
        loss_mask=[(1, 2)],
        weight_versions=[(4, 2)],
        finish_reason="stop",
        text=text,
        worker="w",
        seconds=0.1,
    )
    return replace(one, **fields)


async def send(redis: Redis, *rollouts: Rollout, forward: str = "f1") -> None:
    """Put attempts where the forward of their groups puts them; those of one group, and copies, may come one by one."""
    keys, codec = Keys(RUN), Codec[Attempt](Attempt)
    arrays = [arrays_of(one) for one in rollouts]
    async with redis.pipeline(transaction=True) as pipe:
        for one, data in zip(rollouts, arrays, strict=True):
            pipe.hsetnx(keys.arrays(one.group_id), str(one.attempt), data)
        fresh = await pipe.execute()
        for one in rollouts:
            pipe.hsetnx(keys.arrays(one.group_id), "of", forward)
            pipe.xadd(keys.stream(ROLLOUTS), {"f": forward, **entry_of(codec, one)})
        pipe.hincrby(keys.counters, "stored_bytes", sum(len(d) for d, new in zip(arrays, fresh, strict=True) if new))
        await pipe.execute()


def attempts(redis: Redis, consumer: str = "worker", lease_s: float = 30, max_deliveries: int = 5) -> Attempts:
    return Attempts(redis, RUN, consumer, Delivery(lease_s, max_deliveries))


def group_join(redis: Redis, keep: GroupFilter = keep_all) -> GroupJoin:
    return GroupJoin(Ledger(redis, Keys(RUN)), keep)


@contextlib.asynccontextmanager
async def working(
    stream: Attempts, reward: Reward = EXACT, keep: GroupFilter = keep_all
) -> AsyncIterator[asyncio.Task[None]]:
    """A reward worker that runs during the block."""
    redis, patience = stream.redis, AwaitRedis(LOG, RUN)
    await stream.open()
    groups, ledger = group_join(redis, keep), Ledger(redis, Keys(RUN))
    tell = teller(LOG, Stream(redis, RUN, EVENTS))
    score = scoring(reward, groups, ledger, patience)
    task = asyncio.create_task(Worker(stream, reward.available, score, groups, patience, tell).run())
    try:
        yield task
    finally:
        await end(task)
    if not task.cancelled():
        task.result()


async def emitted(redis: Redis) -> list[GroupReady]:
    stream: Stream[GroupReady] = Stream(redis, RUN, GROUPS)
    return [group for _, group in await stream.read(count=10_000)]


async def stored(redis: Redis, group_id: int) -> list[Attempt]:
    return list((await group_join(redis).read([group_id])).get(group_id, []))


async def dead(redis: Redis) -> list[DeadLetter]:
    stream: Stream[DeadLetter] = Stream(redis, RUN, DEAD)
    return [letter for _, letter in await stream.read(count=10_000)]


async def all_settled(redis: Redis) -> bool:
    """True if the stream of attempts is empty: each was acknowledged, which deletes it."""
    return await redis.xlen(Keys(RUN).stream(ROLLOUTS)) == 0


async def counters(redis: Redis) -> dict[str, int]:
    return await Ledger(redis, Keys(RUN)).counters()
