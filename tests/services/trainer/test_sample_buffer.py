"""The buffer: exact batches in order of arrival, taken up again after a restart; unreadable entries return a slot."""

from random import Random
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from services.trainer.sample_buffer import BatchPolicy, SampleBuffer
from services.trainer.select_groups import freshest
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.messages import Event, GroupReady, Prompt
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import DEAD, EVENTS, GROUPS, Keys
from tests.services.trainer.recorded_groups import feed, rollouts

KEYS = Keys("r1")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.sample_buffer.POLL_S", 0.001)


async def opened(redis: Redis, size: int, **policy: Any) -> SampleBuffer:
    stream = Stream[GroupReady](redis, "r1", GROUPS, "trainer")
    buffer = SampleBuffer(stream, KEYS, BatchPolicy(size, **policy), AwaitRedis(Log("trainer"), "r1"))
    await buffer.open()
    return buffer


async def never() -> bool:
    return False


async def at_once() -> bool:
    return True


async def batch_ids(buffer: SampleBuffer, version: int = 0) -> list[int]:
    batch = await buffer.next_batch(version, never)
    assert batch is not None
    return [message.body.group_id for message in batch]


async def test_batches_keep_the_order_of_arrival(redis: Redis) -> None:
    buffer = await opened(redis, 2)
    await feed(redis, "r1", [4, 0, 3, 1])
    assert [await batch_ids(buffer), await batch_ids(buffer)] == [[4, 0], [3, 1]]


async def test_a_restarted_buffer_begins_with_what_was_received_and_never_put_into_a_step(redis: Redis) -> None:
    first = await opened(redis, 2)
    await feed(redis, "r1", [4, 0, 3])
    batch = await first.next_batch(0, never)
    assert batch is not None
    await batch[0].ack()
    assert await batch_ids(await opened(redis, 2)) == [0, 3]


async def test_a_full_batch_is_given_out_even_when_the_run_is_to_stop(redis: Redis) -> None:
    await feed(redis, "r1", [0, 1])
    await (await opened(redis, 2)).next_batch(0, never)
    again = await opened(redis, 2)
    assert await again.next_batch(0, at_once) is not None
    assert await again.next_batch(0, at_once) is None


async def test_an_entry_that_cannot_be_read_returns_its_slot_once(redis: Redis) -> None:
    buffer = await opened(redis, 1)
    await redis.setbit(KEYS.emitted, 8, 1)
    for _ in range(2):
        await redis.xadd(KEYS.stream(GROUPS), {"m": b"\xc1", "g": 8})
    await feed(redis, "r1", [9])
    assert await batch_ids(buffer) == [9]
    assert (await Ledger(redis, KEYS).counters())["dropped:dead"] == 1
    assert await redis.xlen(KEYS.stream(DEAD)) == 2
    assert await redis.sismember(KEYS.dead_groups, "8")


@pytest.mark.parametrize("decided", [KEYS.trained, KEYS.dropped])
async def test_a_group_that_is_decided_when_it_arrives_is_acknowledged_and_passed_over(
    redis: Redis, decided: str
) -> None:
    buffer = await opened(redis, 2)
    await redis.setbit(decided, 4, 1)
    await feed(redis, "r1", [4, 5, 6])
    assert await batch_ids(buffer) == [5, 6]
    assert (await redis.xpending(KEYS.stream(GROUPS), "trainer"))["pending"] == 2


async def test_a_group_that_comes_again_under_another_entry_is_held_once(redis: Redis) -> None:
    buffer = await opened(redis, 2)
    await feed(redis, "r1", [4])
    assert await buffer.next_batch(0, at_once) is None
    ((_, fields),) = await redis.xrange(KEYS.stream(GROUPS))
    await redis.xadd(KEYS.stream(GROUPS), fields)
    await feed(redis, "r1", [5])
    assert await batch_ids(buffer) == [4, 5]
    assert (await redis.xpending(KEYS.stream(GROUPS), "trainer"))["pending"] == 2


async def test_stale_groups_are_dropped_once_and_return_their_slots(redis: Redis) -> None:
    buffer = await opened(redis, 2, max_staleness=1, staleness="drop")
    await feed(redis, "r1", [4, 5], version=2)
    await feed(redis, "r1", [6, 7], version=3)
    assert await batch_ids(buffer, 4) == [6, 7]
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["dropped"], counters["dropped:stale"]) == (2, 2)
    assert (await redis.xpending(KEYS.stream(GROUPS), "trainer"))["pending"] == 2
    accounts = {name.decode(): int(tokens) for name, tokens in (await redis.hgetall(KEYS.accounts)).items()}
    assert accounts["dropped:stale|dataset|sums"] == sum(len(r.token_ids) for g in (4, 5) for r in rollouts(g))
    events = [event for _, event in await Stream[Event](redis, "r1", EVENTS).read()]
    assert [event.detail["group"] for event in events] == [4, 5]
    assert 0 < await redis.ttl(KEYS.group(4)) <= 900


async def test_stale_groups_are_trained_and_counted_where_the_policy_says_so(redis: Redis) -> None:
    buffer = await opened(redis, 3, max_staleness=1, staleness="train")
    await feed(redis, "r1", [4, 5], version=2)
    await feed(redis, "r1", [6], version=3)
    batch = await buffer.next_batch(4, never)
    assert batch is not None
    assert buffer.count_stale(batch, 4) == 2


async def test_freshest_takes_the_newest_versions_and_priority_the_highest(redis: Redis) -> None:
    fresh = await opened(redis, 2, select=freshest)
    await feed(redis, "r1", [4], version=1)
    await feed(redis, "r1", [5, 6], version=3)
    await feed(redis, "r1", [7], version=2)
    assert await batch_ids(fresh, 3) == [5, 6]
    assert await batch_ids(fresh, 3) == [7, 4]


async def test_waiting_takes_groups_in_the_order_of_release_past_evaluations_and_drops(redis: Redis) -> None:
    buffer = await opened(redis, 2, max_staleness=0, staleness="wait")
    await redis.hset(KEYS.counters, "next_group_id", "40")
    for group in (0, 3, 20):
        await redis.setbit(KEYS.eval_groups, group, 1)
    await redis.setbit(KEYS.dropped, 2, 1)
    await feed(redis, "r1", [5, 4])
    assert await buffer.next_batch(0, at_once) is None  # group 1 is still under way
    await feed(redis, "r1", [1])
    assert await batch_ids(buffer) == [1, 4]


async def test_waiting_never_trains_a_token_older_than_the_bound(redis: Redis) -> None:
    """Groups take random times, some are dropped, and evaluations take ids; admission is the real one."""
    for eta in (0, 1, 3):
        await redis.flushdb()
        assert await oldest_trained(redis, eta, "wait") <= eta
    await redis.flushdb()
    assert await oldest_trained(redis, 1, "train") > 1  # what the order is there for


async def oldest_trained(redis: Redis, eta: int, staleness: Literal["train", "wait"], steps: int = 25) -> int:
    """The largest staleness of any group that a run of random completions trains."""
    size, random, ledger = 2, Random(eta), Ledger(redis, KEYS)
    buffer = await opened(redis, size, max_staleness=eta, staleness=staleness)
    await redis.set(KEYS.feeder_lease, "feeder")
    under_way: dict[int, int] = {}
    released, worst = 0, 0
    for version in range(steps):
        limit = (min(version + eta, steps - 1) + 1) * size
        while (batch := await buffer.next_batch(version, at_once)) is None:
            if random.random() < 0.1:
                prompts = [Prompt(released, "eval", "held_out", 0, "", 1, pinned_version=version)]
                assert await ledger.release("feeder", released, None, prompts, ("eval", ""))
                released += 1
            prompts = [Prompt(released, "train", "sums", 0, "", 4)]
            if await ledger.release("feeder", released, limit, prompts, ("train", "")):
                under_way[released] = version
                released += 1
            await finish_one(redis, under_way, random)
        worst = max(worst, *(version - message.body.oldest_version for message in batch))
        for message in batch:
            await redis.setbit(KEYS.trained, message.body.group_id, 1)
            await message.ack()
    return worst


async def finish_one(redis: Redis, under_way: dict[int, int], random: Random) -> None:
    """The youngest groups are the likeliest to be ready; one in ten is dropped."""
    if not under_way or random.random() < 0.3:
        return
    group = max(random.sample(sorted(under_way), min(3, len(under_way))))
    version = under_way.pop(group)
    if random.random() < 0.1:
        await Ledger(redis, KEYS).drop(group, "train", "filtered", Event(0.0, "reward", "dropped"), None)
    else:
        await feed(redis, "r1", [group], version=version)
