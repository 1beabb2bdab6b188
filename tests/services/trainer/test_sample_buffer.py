"""The buffer: exact batches in order of arrival, taken up again after a restart; unreadable entries return a slot."""

from redis.asyncio import Redis

from services.trainer.sample_buffer import SampleBuffer
from shared.logs import Log
from shared.messages import GroupReady
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import DEAD, GROUPS, Keys
from tests.services.trainer.recorded_groups import feed

KEYS = Keys("r1")


async def opened(redis: Redis, size: int) -> SampleBuffer:
    buffer = SampleBuffer(Stream[GroupReady](redis, "r1", GROUPS, "trainer"), KEYS, size, Log("trainer"))
    await buffer.open()
    return buffer


async def never() -> bool:
    return False


async def at_once() -> bool:
    return True


async def batch_ids(buffer: SampleBuffer) -> list[int]:
    batch = await buffer.next_batch(never)
    assert batch is not None
    return [message.body.group_id for message in batch]


async def test_batches_keep_the_order_of_arrival(redis: Redis) -> None:
    buffer = await opened(redis, 2)
    await feed(redis, "r1", [4, 0, 3, 1])
    assert [await batch_ids(buffer), await batch_ids(buffer)] == [[4, 0], [3, 1]]


async def test_a_restarted_buffer_begins_with_what_was_received_and_never_put_into_a_step(redis: Redis) -> None:
    first = await opened(redis, 2)
    await feed(redis, "r1", [4, 0, 3])
    batch = await first.next_batch(never)
    assert batch is not None
    await batch[0].ack()
    assert await batch_ids(await opened(redis, 2)) == [0, 3]


async def test_a_full_batch_is_given_out_even_when_the_run_is_to_stop(redis: Redis) -> None:
    await feed(redis, "r1", [0, 1])
    await (await opened(redis, 2)).next_batch(never)
    again = await opened(redis, 2)
    assert await again.next_batch(at_once) is not None
    assert await again.next_batch(at_once) is None


async def test_an_entry_that_cannot_be_read_returns_its_slot(redis: Redis) -> None:
    buffer = await opened(redis, 1)
    await redis.xadd(KEYS.stream(GROUPS), {"m": b"\xc1", "g": 8})
    await feed(redis, "r1", [9])
    assert await batch_ids(buffer) == [9]
    assert (await Ledger(redis, KEYS).counters())["dropped:dead"] == 1
    assert await redis.xlen(KEYS.stream(DEAD)) == 1
