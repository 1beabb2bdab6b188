"""The ledger of versions while versions are published, taken, refused, published again, and trainers are killed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.serve_run import train_run
from services.trainer.step_ledger import StepLedger
from shared.runs import Runs
from shared.scripts import Ledger
from shared.service import Serving
from shared.tasks import end
from shared.topology import Keys
from shared.version_ledger import VersionRecord, read_record, read_records
from tests.conftest import until
from tests.services.trainer.bench import KEYS, Bench, Killed, kill_at
from tests.services.trainer.receiving_engine import ReceivingEngine
from tests.services.trainer.recorded_groups import feed, publish_each, serving, start_run
from tests.services.trainer.test_publish_weights import living, publish_to, weights
from tests.services.trainer.test_step_ledger import VERSION

RUN = "r1"


async def record(redis: Redis, version: int) -> VersionRecord:
    found = await read_record(redis, Keys(RUN), version)
    assert found is not None
    return found


async def test_a_version_says_which_engines_took_it_when_and_how_long_that_took(redis: Redis) -> None:
    publisher = publish_to(redis)
    async with living(ReceivingEngine(redis, RUN, "one"), ReceivingEngine(redis, RUN, "two")):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    await publisher.close()
    kept = await record(redis, 0)
    assert (kept.checksum, kept.backend, kept.nbytes) == (report.checksum, "gloo", report.nbytes)
    assert {"hash", "enrol", "connect", "broadcast", "prove", "total"} <= kept.seconds.keys()
    assert (kept.announcements, kept.replaced, kept.more_takes) == (1, [], 0)
    assert {name: (take.state, take.failures) for name, take in kept.takes.items()} == dict.fromkeys(
        ("one", "two"), ("done", 0)
    )
    assert all(kept.announced <= take.time <= kept.announced + 10 for take in kept.takes.values())


async def test_an_engine_that_failed_says_why_also_when_it_has_the_version_by_now(redis: Redis) -> None:
    publisher = publish_to(redis)
    good, bad = ReceivingEngine(redis, RUN, "good"), ReceivingEngine(redis, RUN, "bad")
    async with living(good, bad):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        bad.behaviour = "refuses"
        await publisher.publish(publisher.stage(1, 1, weights(1)))
    await publisher.close()
    took = (await record(redis, 1)).takes
    assert (took["bad"].state, took["bad"].failures, took["bad"].reason) == ("done", 1, "400: no")
    assert took["good"].state == "done"


async def test_an_engine_that_did_not_get_a_version_is_told_with_the_reason(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.rendezvous.STALL_S", 0.3)
    monkeypatch.setattr("services.trainer.send_party.GRACE_S", 0.5)
    publisher = publish_to(redis, update_s=3.0, enrol_s=3.0)
    async with living(ReceivingEngine(redis, RUN, "good"), ReceivingEngine(redis, RUN, "bad", "dies")):
        report = await publisher.publish(publisher.stage(0, 0, weights(0, rows=200_000)))
    await publisher.close()
    takes = (await record(redis, 0)).takes
    assert (takes["bad"].state, takes["bad"].reason) == ("failed", report.failed["bad"])
    assert (takes["bad"].failures >= 1, takes["good"].state) == (True, "done")


async def test_an_engine_that_comes_late_is_added_and_the_others_have_not_taken_it_again(redis: Redis) -> None:
    publisher = publish_to(redis)
    joiners = asyncio.create_task(publisher.serve_joiners())

    async def has_both() -> bool:
        return len((await record(redis, 0)).takes) == 2

    async with living(ReceivingEngine(redis, RUN, "first")):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        before = await record(redis, 0)
        async with living(ReceivingEngine(redis, RUN, "late")):
            await until(has_both)
    await end(joiners)
    await publisher.close()
    after = await record(redis, 0)
    assert after.takes["first"] == before.takes["first"]
    assert (after.announcements, after.seconds) == (2, before.seconds)


async def test_other_weights_that_are_published_under_a_number_are_told_apart(redis: Redis) -> None:
    publisher = publish_to(redis)
    async with living(ReceivingEngine(redis, RUN, "one")):
        first = await publisher.publish(publisher.stage(3, 3, weights(1)))
        second = await publisher.publish(publisher.stage(3, 3, weights(2)))
    await publisher.close()
    kept = await record(redis, 3)
    assert (kept.checksum, kept.replaced, kept.announcements) == (second.checksum, [first.checksum], 1)


async def test_an_announcement_whose_answer_was_lost_is_counted_when_it_is_repeated(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, original = StepLedger(redis, RUN), Ledger.announce
    await ledger.take_over()

    async def answer_is_lost(*given: Any) -> None:
        await original(*given)
        raise ConnectionError("Connection reset by peer")

    monkeypatch.setattr(Ledger, "announce", answer_is_lost)
    with pytest.raises(ConnectionError):
        await ledger.announce(VERSION)
    first = await record(redis, VERSION.version)
    monkeypatch.undo()
    await ledger.announce(VERSION)
    again = await record(redis, VERSION.version)
    assert (again.announced, again.announcements) == (first.announced, first.announcements + 1)


def open_publisher(serving: Serving, ledger: StepLedger) -> WeightPublisher:
    log, waits = serving.place.log, Deadlines(5, 5, 5)
    return WeightPublisher(ledger, "127.0.0.1", log, 1, deadlines=waits, await_redis=serving.await_redis())


class Publishing:
    """Run r1, trained in this process, with an engine that takes its versions."""

    def __init__(self, redis: Redis, home: Path) -> None:
        self.redis, self.home = redis, home
        self.settings = Bench(redis, home, trainer={"checkpoint_every": 2}).settings

    async def train(self) -> None:
        found = await Runs(self.redis).get(RUN) or await start_run(self.redis, self.settings)
        engine = asyncio.create_task(ReceivingEngine(self.redis, RUN, "one").live())
        try:
            await asyncio.wait_for(train_run(serving(self.redis, found, self.home), open_publisher), 60)
        finally:
            await end(engine)

    async def checksums(self) -> dict[int, str]:
        kept = await read_records(self.redis, KEYS, range(5))
        return {version: one.checksum for version, one in kept.items()}


KILLS: dict[str, tuple[Any, str, bool]] = {
    "announced and not sent": (StepLedger, "announce", True),
    "sent and not noted": (StepLedger, "note_takes", False),
    "noted": (StepLedger, "note_takes", True),
    "staged and not announced": (WeightPublisher, "publish", False),
}


@pytest.mark.parametrize("where", KILLS)
async def test_a_trainer_killed_with_a_version_under_way_leaves_the_ledger_of_one_that_was_not(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    publish_each(monkeypatch)
    whole, hurt = Publishing(redis, tmp_path / "whole"), Publishing(redis, tmp_path / "hurt")
    await feed(redis, RUN, range(12))
    await whole.train()
    expected = await whole.checksums()
    assert sorted(expected) == [0, 1, 2, 3, 4]
    await redis.flushdb()
    await feed(redis, RUN, range(12))
    owner, name, after = KILLS[where]
    kill_at(monkeypatch, owner, name, 4, after)  # of version 3
    with pytest.raises(Killed):
        await hurt.train()
    assert await Runs(redis).get(RUN) is not None
    await hurt.train()
    assert await hurt.checksums() == expected
    kept = await read_records(redis, KEYS, range(5))
    assert all(one.replaced == [] and one.takes["one"].state == "done" for one in kept.values())
    assert all(one.seconds for one in kept.values())
