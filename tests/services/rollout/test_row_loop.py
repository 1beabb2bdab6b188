"""The loop over written answers against a real Redis: every row becomes one ready group, once."""

import asyncio
import contextlib

import pytest

from services.rollout import row_loop
from services.rollout.demonstration import read_demonstration
from services.rollout.model_limits import ModelLimits
from services.rollout.model_tokenizer import ModelTokenizer
from services.rollout.preference import read_preference
from services.rollout.row_loop import RowLoop
from services.rollout.written_rollout import RowReader, ready
from services.trainer.tiny_model import byte_tokenizer
from shared.await_redis import AwaitRedis
from shared.joining import complete
from shared.messages import Event, GroupReady, Prompt
from shared.rollout_parts import join_parts
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, GROUPS, PROMPTS, Keys
from tests.conftest import until

RUN = "r1"
KEYS = Keys(RUN)


async def stored_group(redis, group_id):
    """The rollouts of a group by their fields, put together as the trainer does."""
    arrays = await redis.hgetall(KEYS.arrays(group_id))
    return {name: join_parts(one, arrays[name]) for name, one in (await redis.hgetall(KEYS.group(group_id))).items()}


@pytest.fixture(autouse=True)
def short_reads(monkeypatch):
    monkeypatch.setattr(row_loop, "BLOCK_S", 0.05)


def row(group_id, label="2"):
    return Prompt(group_id, "sft", "sums", group_id, f"{group_id}+1=", 1, label)


def pair(group_id, rejected: str | None = "33"):
    return Prompt(group_id, "dpo", "sums", group_id, f"{group_id}+1=", 2, chosen="2", rejected=rejected)


@contextlib.asynccontextmanager
async def working(redis, tokenizer, log, read=read_demonstration):
    reader = RowReader(read, tokenizer, "w")
    prompts: Stream[Prompt] = Stream(redis, RUN, PROMPTS, "w")
    task = asyncio.create_task(
        RowLoop(prompts, Ledger(redis, Keys(RUN)), reader.attempts, log, AwaitRedis(log, RUN)).run()
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
    rollout = (await stored_group(redis, 17))[b"0"]
    assert rollout.prompt_ids.tolist() == tokenizer.encode("17+1=")
    assert rollout.token_ids.tolist() == [*tokenizer.encode("2"), tokenizer.eos_id]
    counters = await ledger.counters()
    assert (counters["emitted"], counters["generated_tokens"]) == (600, 1200)


async def test_a_row_that_was_joined_or_settled_before_a_crash_is_emitted_once(redis, tokenizer, log):
    ledger, prompts = Ledger(redis, Keys(RUN)), Stream[Prompt](redis, RUN, PROMPTS)
    (joined,), (settled,) = RowReader(read_demonstration, tokenizer, "dead").attempts([row(0), row(1)])
    await ledger.join([complete(joined), complete(settled)])
    await ledger.emit((ready([settled]), 2))
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


async def test_a_row_that_is_longer_than_the_models_context_is_dropped_and_says_so(redis, log):
    narrow = ModelTokenizer(byte_tokenizer(), limits=ModelLimits(context=6))  # 4 of the prompt, 1 ends the answer
    await Stream[Prompt](redis, RUN, PROMPTS).publish(row(0, "2"), row(1, "22"), row(2, "3"))
    async with working(redis, narrow, log):
        await until(lambda: _is_spent(redis))
    counters = await Ledger(redis, Keys(RUN)).counters()
    assert (counters["emitted"], counters["dropped"], counters["dropped:rejected"]) == (2, 1, 1)
    ((_, event),) = await Stream[Event](redis, RUN, EVENTS).read()
    assert (event.detail["group"], event.detail["row"], event.detail["reason"]) == (1, 1, "rejected")
    assert event.detail["why"].startswith("prompt and the answer have 7 tokens, and the model takes 6 (see")


async def test_a_pair_is_dropped_if_one_of_its_answers_is_too_long(redis, log):
    narrow = ModelTokenizer(byte_tokenizer(), limits=ModelLimits(context=6))
    await Stream[Prompt](redis, RUN, PROMPTS).publish(pair(0), pair(1, "3"))
    async with working(redis, narrow, log, read_preference):
        await until(lambda: _is_spent(redis))
    assert [group.group_id for _, group in await Stream[GroupReady](redis, RUN, GROUPS).read()] == [1]
    ((_, event),) = await Stream[Event](redis, RUN, EVENTS).read()
    assert event.detail["why"].startswith("prompt and the rejected answer have 7 tokens")


async def test_a_row_with_a_token_that_the_model_does_not_know_is_dropped(redis, log):
    small = ModelTokenizer(byte_tokenizer(), limits=ModelLimits(vocabulary=259))
    await Stream[Prompt](redis, RUN, PROMPTS).publish(row(0, "2"), row(1, "<think>2"))
    async with working(redis, small, log):
        await until(lambda: _is_spent(redis))
    ((_, event),) = await Stream[Event](redis, RUN, EVENTS).read()
    assert (event.detail["group"], event.detail["why"]) == (
        1,
        "token id 259 of the row is beyond the model's vocabulary",
    )


async def test_a_pair_becomes_one_group_with_both_answers_and_both_are_accounted(redis, tokenizer, log):
    await Stream[Prompt](redis, RUN, PROMPTS).publish(pair(0), pair(1, None), pair(2))
    async with working(redis, tokenizer, log, read_preference):
        await until(lambda: _is_spent(redis))
    groups = [group for _, group in await Stream[GroupReady](redis, RUN, GROUPS).read()]
    assert sorted((group.group_id, group.lengths, group.kind) for group in groups) == [
        (0, [6, 7], "dpo"),
        (2, [6, 7], "dpo"),
    ]
    stored = await stored_group(redis, 2)
    assert {n: one.preference for n, one in stored.items()} == {b"0": "chosen", b"1": "rejected"}
    counters = await Ledger(redis, Keys(RUN)).counters()
    assert (counters["emitted"], counters["dropped:rejected"], counters["generated_tokens"]) == (2, 1, 10)
    assert int(await redis.hget(Keys(RUN).accounts, "generated|dataset|sums")) == 10


@pytest.mark.parametrize("joined", [1, 2])
async def test_a_pair_that_a_killed_worker_had_joined_in_part_is_completed_and_counted_once(
    redis, tokenizer, log, joined
):
    ledger, prompts = Ledger(redis, Keys(RUN)), Stream[Prompt](redis, RUN, PROMPTS)
    (answers,) = RowReader(read_preference, tokenizer, "dead").attempts([pair(0)])
    await ledger.join([complete(one) for one in answers[:joined]])
    await prompts.publish(pair(0))
    async with working(redis, tokenizer, log, read_preference):
        await until(lambda: _is_spent(redis))
    assert [group.group_id for _, group in await Stream[GroupReady](redis, RUN, GROUPS).read()] == [0]
    stored = await stored_group(redis, 0)
    assert {n: one.worker for n, one in stored.items()} == {
        b"0": "dead",
        b"1": "dead" if joined == 2 else "w",
    }
    assert int(await redis.hget(Keys(RUN).accounts, "generated|dataset|sums")) == 5


async def _is_spent(redis):
    return await redis.xlen(Keys(RUN).stream(PROMPTS)) == 0
