"""The sft loop against a real Redis: every row becomes one ready group, once."""

import asyncio
import contextlib
import functools

import pytest

from services.rollout import demonstration_loop
from services.rollout.demonstration import demonstrate, ready
from services.rollout.demonstration_loop import DemonstrationLoop
from shared.await_redis import AwaitRedis
from shared.messages import Codec, GroupReady, Prompt, Rollout
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import GROUPS, PROMPTS, Keys
from tests.conftest import until

RUN = "r1"


@pytest.fixture(autouse=True)
def short_reads(monkeypatch):
    monkeypatch.setattr(demonstration_loop, "BLOCK_S", 0.05)


def row(group_id, label="2"):
    return Prompt(group_id, "sft", "sums", group_id, f"{group_id}+1=", 1, label)


@contextlib.asynccontextmanager
async def working(redis, tokenizer, log):
    make = functools.partial(demonstrate, tokenizer=tokenizer, worker="w")
    prompts: Stream[Prompt] = Stream(redis, RUN, PROMPTS, "w")
    task = asyncio.create_task(
        DemonstrationLoop(prompts, Ledger(redis, Keys(RUN)), make, log, AwaitRedis(log, RUN)).run()
    )
    try:
        yield
    finally:
        await end(task)


async def test_every_row_becomes_a_ready_group_whose_payload_is_in_its_hash(redis, tokenizer, log):
    prompts: Stream[Prompt] = Stream(redis, RUN, PROMPTS)
    await prompts.publish(*(row(n) for n in range(600)))
    ledger = Ledger(redis, Keys(RUN))
    async with working(redis, tokenizer, log):
        await until(lambda: _is_spent(redis))
    groups = [group for _, group in await Stream[GroupReady](redis, RUN, GROUPS).read(count=1000)]
    assert sorted(group.group_id for group in groups) == list(range(600))
    codec: Codec[Rollout] = Codec(Rollout)
    payload = await redis.hgetall(Keys(RUN).group(17))
    assert codec.decode(payload[b"0"]).prompt_ids.tolist() == tokenizer.encode("17+1=")
    counters = await ledger.counters()
    assert (counters["emitted"], counters["generated_tokens"]) == (600, 1200)


async def test_a_row_that_was_joined_or_settled_before_a_crash_is_emitted_once(redis, tokenizer, log):
    ledger, prompts = Ledger(redis, Keys(RUN)), Stream[Prompt](redis, RUN, PROMPTS)
    joined, settled = demonstrate([row(0), row(1)], tokenizer, "dead")
    codec: Codec[Rollout] = Codec(Rollout)
    await ledger.join(0, 1, 0, codec.encode(joined))
    await ledger.join(1, 1, 0, codec.encode(settled))
    await ledger.emit(ready(settled), 2)
    await prompts.publish(row(0), row(1))
    async with working(redis, tokenizer, log):
        await until(lambda: _is_spent(redis))
    groups = [group.group_id for _, group in await Stream[GroupReady](redis, RUN, GROUPS).read()]
    assert groups == [1, 0]


async def test_a_row_without_an_answer_is_dropped_and_the_others_go_on(redis, tokenizer, log):
    await Stream[Prompt](redis, RUN, PROMPTS).publish(row(0), row(1, None), row(2))
    async with working(redis, tokenizer, log):
        await until(lambda: _is_spent(redis))
    counters = await Ledger(redis, Keys(RUN)).counters()
    assert (counters["emitted"], counters["dropped"], counters["dropped:rejected"]) == (2, 1, 1)


async def _is_spent(redis):
    return await redis.xlen(Keys(RUN).stream(PROMPTS)) == 0
