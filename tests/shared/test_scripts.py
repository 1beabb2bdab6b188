"""The atomic steps against a real Redis: each happens once, whoever repeats it."""

import pytest
from redis.asyncio import Redis

from shared.errors import FencedOut
from shared.joining import Joined, complete
from shared.messages import Codec, Event, GroupReady, Prompt, StepCommit, StepIntent, StepRecord
from shared.scripts import Ledger
from shared.streams import Stream
from shared.topology import EVENTS, GROUPS, PROMPTS, STEPS, Keys
from tests.services.reward.reward_cases import rollout

RUN = "r1"
TOKEN = "feeder-1"


def prompts(first: int, count: int) -> list[Prompt]:
    return [Prompt(first + i, "train", "sums", first + i, "1+1=", 2) for i in range(count)]


def ready(group_id: int, kind: str = "train", pinned: int | None = None) -> GroupReady:
    return GroupReady(group_id, kind, "sums", 0, [4, 5], [0.0, 1.0], 0, 0, pinned)  # type: ignore[arg-type]


@pytest.fixture
async def ledger(redis: Redis) -> Ledger:
    await redis.set(Keys(RUN).feeder_lease, TOKEN)
    return Ledger(redis, Keys(RUN))


async def test_groups_are_released_up_to_the_admission_limit_and_not_beyond(ledger: Ledger) -> None:
    assert await ledger.release(TOKEN, 0, 4, prompts(0, 3), ("train", "3"))
    assert not await ledger.release(TOKEN, 3, 4, prompts(3, 2), ("train", "5"))
    assert await ledger.release(TOKEN, 3, 4, prompts(3, 1), ("train", "4"))
    assert await ledger.redis.hget(ledger.keys.cursor, "train") == b"4"
    assert await ledger.redis.xlen(ledger.keys.stream(PROMPTS)) == 4


async def test_a_dropped_group_returns_its_slot_once(ledger: Ledger) -> None:
    assert await ledger.release(TOKEN, 0, 2, prompts(0, 2), ("train", "2"))
    event = Event(0.0, "reward", "group_dropped", {"group": 1})
    assert await ledger.drop(1, "train", "filtered", event, None)
    assert not await ledger.drop(1, "train", "filtered", event, None)
    assert (await ledger.counters())["dropped"] == 1
    assert (await ledger.counters())["dropped:filtered"] == 1
    assert await ledger.redis.xlen(ledger.keys.stream(EVENTS)) == 1
    assert await ledger.release(TOKEN, 2, 2, prompts(2, 1), ("train", "3"))


async def test_a_feeder_that_lost_its_lease_releases_nothing(ledger: Ledger) -> None:
    with pytest.raises(FencedOut):
        await ledger.release("feeder-0", 0, 4, prompts(0, 1), ("train", "1"))
    await ledger.release(TOKEN, 0, 4, prompts(0, 1), ("train", "1"))
    with pytest.raises(FencedOut):
        await ledger.release(TOKEN, 0, 4, prompts(0, 1), ("train", "2"))
    assert await ledger.redis.xlen(ledger.keys.stream(PROMPTS)) == 1


async def test_a_release_whose_answer_was_lost_is_repeated_without_harm(ledger: Ledger) -> None:
    for _ in range(2):
        assert await ledger.release(TOKEN, 0, 4, prompts(0, 2), ("train", "2"))
    assert await ledger.redis.xlen(ledger.keys.stream(PROMPTS)) == 2


async def test_a_group_is_complete_with_its_last_attempt_and_repeats_change_nothing(ledger: Ledger) -> None:
    first, again, second = (complete(rollout(5, *which)) for which in ((0, "first"), (0, "again"), (1, "second")))
    assert await ledger.join([first, again, second]) == [
        Joined("incomplete", True),
        Joined("incomplete", False),
        Joined("complete", True),
    ]
    assert await ledger.redis.hgetall(ledger.keys.group(5)) == {b"0": first.encoded, b"1": second.encoded}
    assert (await ledger.redis.hgetall(ledger.keys.arrays(5)))[b"0"] == first.arrays
    assert await ledger.emit((ready(5), 9))
    assert await ledger.join([second]) == [Joined("settled", False)]


async def test_a_group_is_emitted_once_and_never_dropped_after(ledger: Ledger) -> None:
    assert await ledger.emit((ready(5), 9)) == 1
    assert await ledger.emit((ready(5), 9), (ready(6), 4)) == 1
    assert not await ledger.drop(5, "train", "dead", Event(0.0, "reward", "group_dropped"), None)
    groups: Stream[GroupReady] = Stream(ledger.redis, RUN, GROUPS)
    assert [group for _, group in await groups.read()] == [ready(5), ready(6)]
    assert await ledger.counters() == {"emitted": 2, "generated_tokens": 13}


async def test_an_evaluation_group_is_tallied_once_and_never_reaches_the_trainer(ledger: Ledger) -> None:
    for _ in range(2):
        await ledger.tally(ready(6, "eval", pinned=10), off_version=True)
    await ledger.drop(7, "eval", "dead", Event(0.0, "reward", "group_dropped"), (10, "sums"))
    tally = await ledger.redis.hgetall(ledger.keys.evaluation(10))
    assert {name: float(value) for name, value in tally.items()} == {
        b"sums|done": 2,
        b"sums|attempts": 2,
        b"sums|reward": 1,
        b"sums|off_version": 1,
        b"sums|dropped": 1,
    }
    assert await ledger.redis.xlen(ledger.keys.stream(GROUPS)) == 0


async def test_a_step_is_committed_once(ledger: Ledger) -> None:
    intent, commit, epoch = StepIntent(1, [4, 5, 6], 0, 7), StepCommit(1, 1, {"loss": 0.25}), await ledger.take_over()
    await ledger.intend(epoch, intent, [])
    assert await ledger.commit(epoch, commit, intent.group_ids, tokens=40)
    assert not await ledger.commit(epoch, commit, intent.group_ids, tokens=40)
    counters = await ledger.counters()
    assert (counters["step"], counters["trained"], counters["trained_tokens"]) == (1, 3, 40)
    entries = await ledger.redis.xrange(ledger.keys.stream(STEPS))
    assert [Codec(StepRecord).decode(fields[b"m"]) for _, fields in entries] == [intent, commit]


async def test_a_version_only_advances(ledger: Ledger) -> None:
    assert await ledger.advance("weight_version", 0)
    assert await ledger.advance("weight_version", 4)
    assert not await ledger.advance("weight_version", 3)
    assert (await ledger.counters())["weight_version"] == 4


async def test_the_events_of_a_run_do_not_grow_without_bound(ledger: Ledger) -> None:
    key, kept = ledger.keys.stream(EVENTS), EVENTS.keep_newest or 0
    fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'm', '') end"
    await ledger.redis.eval(fill, 1, key, kept + 1000)  # type: ignore[misc]
    assert await ledger.drop(0, "train", "filtered", Event(0.0, "reward", "dropped"), None)
    assert kept <= await ledger.redis.xlen(key) <= kept + 200
