"""Stream[M] against a real Redis: delivery, leases, forwarding, reclaim and dead letters."""

import asyncio

from redis.asyncio import Redis

from shared.messages import Event, Prompt
from shared.streams import Delivery, Stream
from shared.topology import DEAD, EVENTS, PROMPTS, Keys

RUN = "r1"


def prompt(group_id: int) -> Prompt:
    return Prompt(group_id, "train", "sums", group_id, "1+1=", 2)


def prompts(redis: Redis, consumer: str, lease_s: float = 30, max_deliveries: int = 5) -> Stream[Prompt]:
    return Stream(redis, RUN, PROMPTS, consumer, Delivery(lease_s, max_deliveries))


async def test_a_message_is_delivered_to_one_consumer_of_the_group(redis: Redis) -> None:
    one, two = prompts(redis, "one"), prompts(redis, "two")
    await one.open()
    await one.publish(prompt(0), prompt(1), prompt(2))
    first = await one.receive(2, 0.1)
    second = await two.receive(2, 0.1)
    assert [m.body.group_id for m in first] == [0, 1]
    assert [m.body.group_id for m in second] == [2]


async def test_forward_publishes_and_acknowledges_at_once_and_deletes_the_spent_entry(redis: Redis) -> None:
    stream, events = prompts(redis, "one"), Stream[Event](redis, RUN, EVENTS)
    await stream.open()
    await stream.publish(prompt(7))
    (message,) = await stream.receive(1, 0.1)
    await message.forward(events, Event(1.0, "rollout", "done", {"group": 7}))
    assert (await redis.xpending(stream.key, "rollout"))["pending"] == 0
    assert await redis.xlen(stream.key) == 0
    assert [event.detail for _, event in await events.read()] == [{"group": 7}]


async def test_a_silent_consumers_entry_goes_to_another_one_after_its_lease(redis: Redis) -> None:
    dead, alive = prompts(redis, "dead", lease_s=0.05), prompts(redis, "alive", lease_s=0.05)
    await dead.open()
    await dead.publish(prompt(3))
    await dead.receive(1, 0.1)
    taken = await _until_received(alive)
    assert taken.body.group_id == 3


async def test_a_working_consumer_keeps_its_entry_beyond_the_lease(redis: Redis) -> None:
    worker, other = prompts(redis, "worker", lease_s=0.3), prompts(redis, "other", lease_s=0.3)
    await worker.open()
    await worker.publish(prompt(3))
    (message,) = await worker.receive(1, 0.1)
    keeper = asyncio.create_task(worker.keep_leases())
    assert [await other.receive(1, 0.3) for _ in range(4)] == [[], [], [], []]
    await message.ack()
    keeper.cancel()


async def test_an_undecodable_entry_goes_to_the_dead_letters_and_returns_its_slot(redis: Redis) -> None:
    returned: list[tuple[int | None, str]] = []

    async def on_dead(group_id: int | None, reason: str) -> None:
        returned.append((group_id, reason))

    stream = prompts(redis, "one")
    stream.on_dead = on_dead
    await stream.open()
    await redis.xadd(stream.key, {"m": b"\xc1 no msgpack", "g": 12})
    await stream.publish(prompt(13))
    messages = await stream.receive(10, 0.1)
    assert [m.body.group_id for m in messages] == [13]
    assert [group for group, _ in returned] == [12]
    assert "not a Prompt" in returned[0][1]
    assert await redis.xlen(Keys(RUN).stream(DEAD)) == 1


async def test_an_entry_that_nobody_finishes_is_dead_after_max_deliveries(redis: Redis) -> None:
    stream = prompts(redis, "one", lease_s=0.05, max_deliveries=2)
    await stream.open()
    await stream.publish(prompt(0))
    deliveries = 0
    deadline = asyncio.get_running_loop().time() + 5
    while not await redis.xlen(Keys(RUN).stream(DEAD)):
        assert asyncio.get_running_loop().time() < deadline
        for message in await stream.receive(1, 0.05):
            deliveries += 1
            message.retry_later()
    assert deliveries == 2
    assert (await redis.xpending(stream.key, "rollout"))["pending"] == 0


async def test_recover_returns_what_an_earlier_process_left_unacknowledged(redis: Redis) -> None:
    first = prompts(redis, "trainer")
    await first.open()
    await first.publish(prompt(0), prompt(1))
    received = await first.receive(2, 0.1)
    await received[0].ack()
    again = prompts(redis, "trainer")
    assert [m.body.group_id for m in await again.recover()] == [1]


async def _until_received(stream: Stream[Prompt]) -> "object":
    deadline = asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < deadline:
        messages = await stream.receive(1, 0.05)
        if messages:
            return messages[0]
    raise AssertionError("nothing was reclaimed")
