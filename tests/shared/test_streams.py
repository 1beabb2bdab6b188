"""Stream[M] against a real Redis: delivery, leases, forwarding, reclaim and dead letters."""

import asyncio
from dataclasses import replace

from redis.asyncio import Redis

from shared.messages import MAX_ENTRY_BYTES, Codec, Event, Prompt
from shared.streams import Delivery, Message, Stream
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


async def test_messages_are_acknowledged_together_and_their_spent_entries_deleted(redis: Redis) -> None:
    stream = prompts(redis, "one")
    await stream.open()
    await stream.publish(prompt(7), prompt(8), prompt(9))
    received = await stream.receive(3, 0.1)
    await stream.acknowledge(received[:2])
    await stream.acknowledge([])
    assert (await redis.xpending(stream.key, "rollout"))["pending"] == 1
    assert [message.group_id for _, message in await stream.read()] == [9]


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
    assert {group for group, _ in returned} == {12}
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


async def test_a_message_says_how_often_its_entry_was_delivered(redis: Redis) -> None:
    first, second = prompts(redis, "trainer"), prompts(redis, "other", lease_s=0.05)
    await first.open()
    await first.publish(prompt(0))
    assert [m.deliveries for m in await first.receive(1, 0.1)] == [1]
    assert [m.deliveries for m in await prompts(redis, "trainer").recover()] == [2]
    assert (await _until_received(second)).deliveries == 3


async def test_an_entry_that_kills_its_worker_ends_dead_and_takes_no_innocent_one_along(redis: Redis) -> None:
    await prompts(redis, "x").open()
    await prompts(redis, "x").publish(*(prompt(group_id) for group_id in range(12)))
    done: list[int] = []
    deaths: list[list[int]] = []
    async with asyncio.timeout(10):
        while await redis.xlen(Keys(RUN).stream(PROMPTS)):
            worker = prompts(redis, f"worker-{len(deaths)}", lease_s=0.05, max_deliveries=4)
            while await redis.xlen(Keys(RUN).stream(PROMPTS)):
                held = await worker.receive(4, 0.02)
                if any(m.body.group_id == 6 for m in held):  # a segmentation fault: none of them is settled
                    deaths.append([m.body.group_id for m in held])
                    break
                for message in held:
                    await message.ack()
                    done.append(message.body.group_id)
    assert deaths == [[4, 5, 6, 7], [4, 5, 6, 7], [6], [6]]
    assert sorted(done) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    ((_, letter),) = await Stream(redis, RUN, DEAD).read()
    assert (letter.group_id, letter.deliveries, letter.entry) == (6, 4, Codec[Prompt](Prompt).encode(prompt(6)))


async def test_a_suspect_is_received_alone_and_nothing_else_beside_it(redis: Redis) -> None:
    worker, other = (prompts(redis, name, lease_s=0.3) for name in ("worker", "other"))
    await worker.open()
    await worker.publish(prompt(0))
    for name in ("dead-1", "dead-2"):
        await _until_received(prompts(redis, name, lease_s=0.3))
    await worker.publish(prompt(1), prompt(2))
    (held,) = await other.receive(1, 0)
    async with asyncio.timeout(5):
        while await redis.xpending_range(worker.key, "rollout", "-", "+", 1, idle=300) == []:
            await asyncio.sleep(0.01)
    assert held.body.group_id == 1
    assert await other.receive(4, 0.01) == [], "it holds something, so it takes neither the suspect nor anything new"
    suspect = await _until_received(worker)
    assert (suspect.body.group_id, suspect.deliveries) == (0, 3)
    assert await worker.receive(4, 0.01) == []
    (last,) = await other.receive(4, 0.01)
    assert last.body.group_id == 2, "no suspect waits any more"
    await held.ack()
    await last.ack()
    await suspect.ack()
    await worker.publish(prompt(3))
    assert [m.body.group_id for m in await worker.receive(4, 0.1)] == [3]


async def test_entries_that_a_live_worker_lets_go_are_no_suspects(redis: Redis) -> None:
    worker = prompts(redis, "worker", lease_s=0.05)
    await worker.open()
    await worker.publish(prompt(0), prompt(1))
    received: list[list[int]] = []
    async with asyncio.timeout(5):
        while len(received) < 4:
            if messages := await worker.receive(10, 0.01):
                received.append([m.body.group_id for m in messages])
                for message in messages:
                    message.retry_later()
    assert received == [[0, 1]] * 4


async def test_a_consumer_that_was_stopped_for_a_while_does_not_take_its_entries_back(redis: Redis) -> None:
    stopped, other = prompts(redis, "stopped", lease_s=0.05), prompts(redis, "other", lease_s=0.05)
    await stopped.open()
    await stopped.publish(prompt(0))
    await stopped.receive(1, 0)
    await _until_received(other)
    await stopped._renew(stopped._held, "stopped")  # pyright: ignore[reportPrivateUsage]
    (entry,) = await redis.xpending_range(stopped.key, "rollout", "-", "+", 1)
    assert entry["consumer"] == b"other"


async def test_an_oversize_entry_goes_to_the_dead_letters_without_its_bytes(redis: Redis) -> None:
    stream = prompts(redis, "one")
    await stream.open()
    await redis.xadd(stream.key, {"m": bytes(MAX_ENTRY_BYTES + 1), "g": 12})
    assert await stream.receive(10, 0) == []
    ((_, letter),) = await Stream(redis, RUN, DEAD).read()
    assert (letter.group_id, letter.entry) == (12, b"")
    assert letter.error.endswith(f"its {MAX_ENTRY_BYTES + 1} bytes were not kept")


async def test_a_dead_letter_is_written_once_though_its_answer_was_lost(redis: Redis) -> None:
    stream = prompts(redis, "one")
    await stream.open()
    await stream.publish(prompt(0))
    (message,) = await stream.receive(1, 0)
    for _ in range(2):
        await message.dead_letter("no")
    assert await redis.xlen(Keys(RUN).stream(DEAD)) == 1


async def test_a_group_that_is_sent_again_while_an_entry_of_it_is_buried_is_given_up_again(redis: Redis) -> None:
    given_up: list[int | None] = []

    async def on_dead(group_id: int | None, reason: str) -> None:
        given_up.append(group_id)
        await redis.setbit(Keys(RUN).emitted, 7, len(given_up) - 1)  # the first time, a re-drive comes right after it

    stream = prompts(redis, "one")
    stream.on_dead = on_dead
    await stream.open()
    await stream.publish(prompt(7))
    (message,) = await stream.receive(1, 0)
    await message.dead_letter("no")
    assert given_up == [7, 7]
    assert await redis.xlen(Keys(RUN).stream(DEAD)) == 1


async def test_events_are_trimmed_as_they_are_written(redis: Redis) -> None:
    events: Stream[Event] = Stream(redis, RUN, replace(EVENTS, keep_newest=100))
    for _ in range(10):
        await events.publish(*(Event(0.0, "reward", "dropped") for _ in range(100)))
    assert 100 <= await redis.xlen(events.key) <= 300


async def test_recover_returns_what_an_earlier_process_left_unacknowledged(redis: Redis) -> None:
    first = prompts(redis, "trainer")
    await first.open()
    await first.publish(prompt(0), prompt(1))
    received = await first.receive(2, 0.1)
    await received[0].ack()
    again = prompts(redis, "trainer")
    assert [m.body.group_id for m in await again.recover()] == [1]


async def _until_received(stream: Stream[Prompt]) -> Message[Prompt]:
    deadline = asyncio.get_running_loop().time() + 5
    while asyncio.get_running_loop().time() < deadline:
        messages = await stream.receive(1, 0.05)
        if messages:
            return messages[0]
    raise AssertionError("nothing was reclaimed")
