"""The publisher against engines that behave, come late, are mute, refuse, freeze or die; real Redis and real gloo."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from services.trainer.gather_engines import Engines
from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.step_ledger import StepLedger
from services.trainer.weight_buckets import WeightBuckets
from services.trainer.weight_hashes import checksum
from shared.enrolment import read_part
from shared.errors import FencedOut
from shared.logs import Log
from shared.messages import Event, WeightVersion
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, WEIGHTS, Keys
from tests.conftest import until
from tests.services.trainer.receiving_engine import ReceivingEngine

RUN = "r1"


def weights(seed: int, rows: int = 300) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ("model.embed_tokens.weight", torch.randn(rows, 16, generator=generator)),
        ("model.norm.weight", torch.randn(16, generator=generator).bfloat16()),
        ("model.layers.0.self_attn.q_proj.weight", torch.randn(16, 16, generator=generator)),
    ]


@pytest.fixture
async def publisher(redis: Redis) -> AsyncIterator[WeightPublisher]:
    made = publish_to(redis)
    yield made
    await made.close()


def publish_to(redis: Redis, max_unavailable: int = 0, per_group: int = 0, **deadlines: float) -> WeightPublisher:
    seconds = {"enrol_s": 5, "update_s": 5, "first_engine_s": 5, **deadlines}
    waits = Deadlines(**seconds, max_unavailable=max_unavailable, engines_per_group=per_group)
    return WeightPublisher(StepLedger(redis, RUN), "127.0.0.1", Log("trainer"), bucket_mib=1, deadlines=waits)


@contextlib.asynccontextmanager
async def living(*engines: ReceivingEngine) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(engine.live()) for engine in engines]
    try:
        await until(lambda: _all_up(engines))
        yield
    finally:
        await end(*tasks)


async def _all_up(engines: tuple[ReceivingEngine, ...]) -> bool:
    up = await engines[0].redis.zrange(Keys(RUN).alive, 0, -1)
    return len(up) >= len(engines)


async def test_every_engine_receives_the_staged_bytes_and_the_counter_advances(
    redis: Redis, publisher: WeightPublisher
) -> None:
    one, two = ReceivingEngine(redis, RUN, "one"), ReceivingEngine(redis, RUN, "two")
    async with living(one, two):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert report.done == ("one", "two")
    assert checksum(one.received[0], "cpu") == checksum(two.received[0], "cpu") == report.checksum
    for name, tensor in weights(0):
        assert torch.equal(two.received[0][name], tensor)
    assert (await Ledger(redis, Keys(RUN)).counters())["weight_version"] == 0


async def test_training_on_after_staging_does_not_change_what_is_published(
    redis: Redis, publisher: WeightPublisher
) -> None:
    engine, parameters = ReceivingEngine(redis, RUN, "one"), weights(3)
    staged = publisher.stage(0, 0, parameters)
    for _, tensor in parameters:
        tensor.zero_()
    async with living(engine):
        await publisher.publish(staged)
    assert torch.equal(engine.received[0]["model.embed_tokens.weight"], weights(3)[0][1])


async def test_the_group_is_kept_while_the_membership_is_the_same_and_rebuilt_when_it_changes(
    redis: Redis, publisher: WeightPublisher
) -> None:
    one, two = ReceivingEngine(redis, RUN, "one"), ReceivingEngine(redis, RUN, "two")
    async with living(one):
        for version in range(3):
            await publisher.publish(publisher.stage(version, version, weights(version)))
        assert len(one.groups_joined) == 1
        async with living(two):
            await until(lambda: _all_up((one, two)))
            report = await publisher.publish(publisher.stage(3, 3, weights(3)))
    assert report.done == ("one", "two")
    assert len(one.groups_joined) == 2


async def test_an_engine_that_comes_makes_no_other_one_join_again_where_each_has_its_own_group(redis: Redis) -> None:
    publisher = publish_to(redis, per_group=1)
    one, two = ReceivingEngine(redis, RUN, "one"), ReceivingEngine(redis, RUN, "two")
    async with living(one):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        async with living(two):
            await until(lambda: _all_up((one, two)))
            for version in (1, 2):
                report = await publisher.publish(publisher.stage(version, version, weights(version)))
                assert set(report.done) == {"one", "two"}
                assert checksum(one.received[version], "cpu") == checksum(two.received[version], "cpu")
    assert (len(one.groups_joined), len(two.groups_joined)) == (1, 1)
    await publisher.close()


@pytest.mark.parametrize("behaviour", ["freezes", "stalls", "dies", "drains", "never"])
async def test_no_engine_waits_for_another_one_where_each_has_its_own_group(
    redis: Redis, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The good one has taken the version and serves it while nothing has become of the other one."""
    monkeypatch.setattr("services.trainer.rendezvous.STALL_S", 0.3)
    monkeypatch.setattr("services.trainer.clear_engines.READY_S", 0.3)
    monkeypatch.setattr("services.trainer.send_party.GRACE_S", 0.5)
    publisher = publish_to(redis, per_group=1, update_s=3.0, enrol_s=3.0)
    good, other = ReceivingEngine(redis, RUN, "good"), ReceivingEngine(redis, RUN, "other")
    async with living(good, other):
        await publisher.publish(publisher.stage(0, 0, weights(0, rows=200_000)))
        other.behaviour = behaviour
        report = await publisher.publish(publisher.stage(1, 1, weights(1, rows=200_000)))
    assert "good" in report.done
    assert ("other" in report.done) == (behaviour == "drains")
    assert [word.word for word in good.words if word.word != "wait"] == ["send", "send"]
    assert len(good.groups_joined) == 1
    if behaviour == "drains":
        assert good.at_work[1] < other.at_work[0]
    await publisher.close()


async def test_engines_that_wait_for_their_turn_at_the_buffers_of_a_snapshot_on_the_host_are_not_paused(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        WeightBuckets, "to_send", lambda self: ([flat] for flat in self.flat)
    )  # the buffers are a GPU's
    publisher = publish_to(redis, per_group=1)
    engines = [ReceivingEngine(redis, RUN, name) for name in "abc"]
    async with living(*engines):
        staged = publisher.stage(0, 0, weights(0, rows=200_000))
        staged.buckets.is_on_host = True
        report = await publisher.publish(staged)
    assert set(report.done) == {"a", "b", "c"}
    paused = sorted(engine.at_work for engine in engines)
    assert all(ended <= began for (_, ended), (began, _) in pairwise(paused))
    await publisher.close()


async def test_engines_are_not_told_to_begin_after_the_deadline(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.send_party.GRACE_S", 0.2)
    publisher = publish_to(redis, per_group=1, enrol_s=0.5, update_s=1.0)
    slow, other = ReceivingEngine(redis, RUN, "a"), ReceivingEngine(redis, RUN, "b")
    slow.is_open.clear()
    async with living(slow, other):
        staged = publisher.stage(0, 0, weights(0))
        staged.buckets.is_on_host = True
        report = await publisher.publish(staged)
        assert (await read_part(redis, Keys(RUN), 0, "b")).state == "enrolled"
    assert "the deadline passed" in report.failed["b"]
    await publisher.close()


async def test_version_zero_waits_for_a_first_engine(redis: Redis, publisher: WeightPublisher) -> None:
    publishing = asyncio.create_task(publisher.publish(publisher.stage(0, 0, weights(0))))
    assert await Stream[WeightVersion](redis, RUN, WEIGHTS).read(block_s=0.2) == []
    async with living(ReceivingEngine(redis, RUN, "late")):
        assert (await publishing).done == ("late",)


async def test_a_later_version_without_engines_is_finished_at_once_and_a_joiner_gets_it(
    redis: Redis, publisher: WeightPublisher
) -> None:
    report = await publisher.publish(publisher.stage(7, 7, weights(7)))
    assert (report.done, report.failed) == ((), {})
    assert (await Ledger(redis, Keys(RUN)).counters())["weight_version"] == 7
    joiners = asyncio.create_task(publisher.serve_joiners())
    late = ReceivingEngine(redis, RUN, "late")
    async with living(late):
        await until(lambda: _has(late, 7))
    await end(joiners)
    assert checksum(late.received[7], "cpu") == report.checksum


async def test_engines_that_hold_the_version_are_left_alone_while_a_joiner_gets_it(
    redis: Redis, publisher: WeightPublisher
) -> None:
    first, late = ReceivingEngine(redis, RUN, "first"), ReceivingEngine(redis, RUN, "late")
    joiners = asyncio.create_task(publisher.serve_joiners())
    async with living(first):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        async with living(late):
            await until(lambda: _has(late, 0))
    await end(joiners)
    assert len(first.groups_joined) == 1


async def test_a_mute_engine_delays_the_others_by_the_enrolment_deadline_only(redis: Redis) -> None:
    publisher = publish_to(redis, enrol_s=0.3)
    good = ReceivingEngine(redis, RUN, "good")
    async with living(good, ReceivingEngine(redis, RUN, "mute", "mute")):
        started = time.monotonic()
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert report.done == ("good",)
    assert time.monotonic() - started < 2
    await publisher.close()


async def test_an_engine_that_refuses_frees_the_others_and_all_get_the_version_in_a_second_round(
    redis: Redis, publisher: WeightPublisher
) -> None:
    good, bad = ReceivingEngine(redis, RUN, "good"), ReceivingEngine(redis, RUN, "bad")
    async with living(good, bad):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        bad.behaviour = "refuses"
        started = time.monotonic()
        report = await publisher.publish(publisher.stage(1, 1, weights(1)))
        assert time.monotonic() - started < 3
    assert set(report.done) == {"good", "bad"}
    assert checksum(bad.received[1], "cpu") == checksum(good.received[1], "cpu") == report.checksum


@pytest.mark.parametrize("behaviour", ["freezes", "stalls", "dies"])
async def test_an_engine_lost_in_the_middle_hangs_nobody_beyond_the_deadline(
    redis: Redis, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.rendezvous.STALL_S", 0.3)
    monkeypatch.setattr("services.trainer.clear_engines.READY_S", 0.3)
    monkeypatch.setattr("services.trainer.send_party.GRACE_S", 0.5)
    publisher = publish_to(redis, update_s=3.0, enrol_s=3.0)
    good, bad = ReceivingEngine(redis, RUN, "good"), ReceivingEngine(redis, RUN, "bad", behaviour)
    large = weights(0, rows=200_000)
    async with living(good, bad):
        started = time.monotonic()
        report = await publisher.publish(publisher.stage(0, 0, large))
        assert time.monotonic() - started < 12
        assert "bad" in report.failed
        assert "good" in report.done
    told = [word.word for word in good.words if word.word != "wait"]
    assert told == ["over" if behaviour == "freezes" else "send", "send"]
    assert [event.event for _, event in await Stream[Event](redis, RUN, EVENTS).read()] == ["weights_failed"]
    await publisher.close()


async def test_engines_take_a_version_in_waves_of_max_unavailable_that_keep_their_groups(redis: Redis) -> None:
    publisher = publish_to(redis, max_unavailable=2)
    engines = [ReceivingEngine(redis, RUN, name) for name in "abcde"]
    async with living(*engines):
        for version in range(3):
            report = await publisher.publish(publisher.stage(version, version, weights(version)))
            assert report.done == ("a", "b", "c", "d", "e")
            starts = sorted(engine.at_work[0] for engine in engines)
            for at in starts:
                assert sum(began <= at < ended for began, ended in (engine.at_work for engine in engines)) <= 2
    assert [len(engine.groups_joined) for engine in engines] == [1] * 5
    assert len({engine.group for engine in engines}) == 3
    await publisher.close()


async def test_a_wave_in_which_an_engine_failed_is_helped_before_the_next_one_is_paused(redis: Redis) -> None:
    publisher = publish_to(redis, max_unavailable=2)
    engines = [ReceivingEngine(redis, RUN, name) for name in "abcd"]
    async with living(*engines):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        engines[1].behaviour = "refuses"
        report = await publisher.publish(publisher.stage(1, 1, weights(1)))
        assert set(report.done) == {"a", "b", "c", "d"}
    assert max(engine.at_work[1] for engine in engines[:2]) <= min(engine.at_work[0] for engine in engines[2:])
    assert [len(engine.groups_joined) for engine in engines] == [2, 2, 1, 1]
    await publisher.close()


async def test_an_engine_that_fails_again_and_again_is_left_to_later_and_the_others_get_the_version(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.send_party.CONNECT_S", 0.5)
    publisher = publish_to(redis, max_unavailable=1)
    engines = [ReceivingEngine(redis, RUN, name, "never" if name == "a" else "well") for name in "abc"]
    async with living(*engines):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert (report.done, list(report.failed)) == (("b", "c"), ["a"])
    await publisher.close()


async def test_engines_that_are_ready_hear_of_a_trainer_that_waits_for_one_that_still_drains(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.clear_engines.READY_S", 0.3)
    monkeypatch.setattr("services.trainer.clear_engines.BEAT_S", 0.1)
    publisher, quick = publish_to(redis), ReceivingEngine(redis, RUN, "quick")
    async with living(quick, ReceivingEngine(redis, RUN, "slow", "drains")):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert (report.done, report.failed) == (("quick", "slow"), {})
    beats = [word.beat for word in quick.words if word.word == "wait"]
    assert len(beats) >= 3
    assert beats == sorted(set(beats))
    await publisher.close()


async def test_a_restarted_engine_is_another_member_and_gets_the_newest_version(
    redis: Redis, publisher: WeightPublisher
) -> None:
    engine = ReceivingEngine(redis, RUN, "one")
    async with living(engine):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
    again = ReceivingEngine(redis, RUN, "one", incarnation="b")
    joiners = asyncio.create_task(publisher.serve_joiners())
    async with living(again):
        await until(lambda: _has(again, 0))
        report = await publisher.publish(publisher.stage(1, 1, weights(1)))
    await end(joiners)
    assert report.done == ("one",)
    assert checksum(again.received[1], "cpu") == report.checksum


@pytest.mark.parametrize("moment", ["gather", "start", "look", "say", "ended"])
async def test_a_redis_that_goes_away_in_the_middle_costs_a_round_and_no_engine(
    redis: Redis, publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("services.trainer.publish_weights.SETTLE_S", 0.0)
    original, calls = getattr(Engines, moment), count()

    async def away_once(*args: Any, **more: Any) -> Any:
        if next(calls) == 0:
            raise ConnectionError("Connection refused")
        return await original(*args, **more)

    monkeypatch.setattr(Engines, moment, away_once)
    one, two = ReceivingEngine(redis, RUN, "one"), ReceivingEngine(redis, RUN, "two")
    async with living(one, two):
        report = await publisher.publish(publisher.stage(3, 3, weights(3)))
    assert set(report.done) == {"one", "two"}
    assert checksum(one.received[3], "cpu") == checksum(two.received[3], "cpu") == report.checksum
    assert (await Ledger(redis, Keys(RUN)).counters())["weight_version"] == 3


async def test_an_engine_takes_a_version_again_that_was_trained_again_and_an_older_one(
    redis: Redis, publisher: WeightPublisher
) -> None:
    engine = ReceivingEngine(redis, RUN, "one")
    async with living(engine):
        for version, seed in ((7, 1), (5, 2), (7, 3)):
            report = await publisher.publish(publisher.stage(version, version, weights(seed)))
            assert report.done == ("one",)
            assert checksum(engine.received[version], "cpu") == report.checksum


async def test_a_trainer_that_was_replaced_offers_engines_nothing_and_opens_no_admission(
    redis: Redis, publisher: WeightPublisher
) -> None:
    engine, stream = ReceivingEngine(redis, RUN, "one"), Stream[WeightVersion](redis, RUN, WEIGHTS)
    async with living(engine):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        await StepLedger(redis, RUN).take_over()
        with pytest.raises(FencedOut, match="another trainer took this run over"):
            await publisher.publish(publisher.stage(1, 1, weights(1)))
        assert [version.version for _, version in await stream.read()] == [0]
        assert (await Ledger(redis, Keys(RUN)).counters())["weight_version"] == 0
        assert sorted(engine.received) == [0]


async def test_a_trainer_that_was_replaced_serves_no_joiner(redis: Redis, publisher: WeightPublisher) -> None:
    await publisher.publish(publisher.stage(3, 3, weights(3)))
    await StepLedger(redis, RUN).take_over()
    async with living(ReceivingEngine(redis, RUN, "late")):
        with pytest.raises(FencedOut):
            await asyncio.wait_for(publisher.serve_joiners(), 10)


async def _has(engine: ReceivingEngine, version: int) -> bool:
    return version in engine.received
