"""Versions that are lent: the sidecar's own code has them copied out of the trainer's memory, without SGLang."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import torch
from redis.asyncio import Redis

from benchmarks.received_weights import ReceivedWeights
from benchmarks.weight_receiver import Edge
from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_update import EngineUpdate
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from services.trainer.lend_version import Lender
from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.step_ledger import StepLedger
from services.trainer.weight_hashes import digest
from shared.logs import Log
from shared.runs import announce, present
from shared.tasks import end
from shared.topology import WEIGHTS, Keys
from tests.conftest import until
from tests.services.trainer.test_publish_weights import weights

RUN = "r1"


@pytest.fixture
async def publisher(redis: Redis) -> AsyncIterator[WeightPublisher]:
    ledger = StepLedger(redis, RUN)
    waits = Deadlines(enrol_s=20, update_s=20, first_engine_s=20)
    made = WeightPublisher(
        ledger, "127.0.0.1", Log("trainer"), 1, "device", waits, transport=Lender(ledger, waits.enrol_s, 0)
    )
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def sidecar(redis: Redis, name: str, edge: ReceivedWeights) -> AsyncIterator[None]:
    update = EngineUpdate(EngineCalls("http://engine", Edge(edge)), "retract", "cpu")
    puller = WeightPuller(redis, RUN, EngineIdentity(name, "a", 1), update, Log("engine"))
    await announce(redis, RUN, f"engine-up/{name}")

    async def failed() -> None: ...

    following = asyncio.create_task(puller.follow(lambda: None, failed))
    try:
        yield
    finally:
        await end(following)


async def test_engines_copy_what_is_staged_and_prove_it_version_after_version(
    redis: Redis, publisher: WeightPublisher
) -> None:
    one, two = ReceivedWeights(), ReceivedWeights()
    async with sidecar(redis, "one", one), sidecar(redis, "two", two):
        for version in range(3):
            large = weights(version, rows=40_000)  # two buckets, and a tensor that is larger than one
            report = await publisher.publish(publisher.stage(version, version, large))
            assert report is not None
            assert (report.done, report.failed, report.unverified) == (("one", "two"), {}, ())
            assert digest(one.checksums()) == digest(two.checksums()) == report.checksum


async def test_a_snapshot_that_is_lent_is_not_changed_by_the_next_one(
    redis: Redis, publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, may_take, original = ReceivedWeights(), asyncio.Event(), EngineCalls.load_pickled

    async def wait(self: EngineCalls, buckets: list[str], version: int | None, deadline_s: float) -> None:
        await may_take.wait()
        await original(self, buckets, version, deadline_s)

    async with sidecar(redis, "one", one):
        await publisher.publish(publisher.stage(0, 0, weights(0)))
        monkeypatch.setattr(EngineCalls, "load_pickled", wait)
        publishing = asyncio.create_task(publisher.publish(publisher.stage(1, 1, weights(1))))
        async with asyncio.timeout(5):
            while not any(b'"go"' in part for part in await redis.hvals("{r1}:enrolled:1")):
                await asyncio.sleep(0.005)
        publisher.stage(2, 2, [(name, torch.zeros_like(tensor)) for name, tensor in weights(2)])
        may_take.set()
        report = await publishing
    assert report is not None
    assert (report.done, report.unverified) == (("one",), ())
    assert digest(one.checksums()) == report.checksum


async def test_an_engine_on_another_machine_is_told_what_to_write_and_keeps_its_weights(
    redis: Redis, publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rollout.take_lent.machine_id", lambda: "another one")
    apart = ReceivedWeights()
    async with sidecar(redis, "apart", apart):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert report is not None
    assert report.done == ()
    assert "is not on the trainer's machine" in report.failed["apart"]
    assert 'write weights.transport = "broadcast"' in report.failed["apart"]
    assert apart.seconds["copy"] == 0


async def test_an_engine_that_refuses_keeps_nobody_from_the_version(
    redis: Redis, publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, stuck, original = ReceivedWeights(), ReceivedWeights(), ReceivedWeights.take

    def take(self: ReceivedWeights, body: dict[str, object]) -> None:
        if self is stuck:
            raise RuntimeError("no")
        original(self, body)

    monkeypatch.setattr(ReceivedWeights, "take", take)
    async with sidecar(redis, "good", good), sidecar(redis, "stuck", stuck):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)))
    assert report is not None
    assert report.done == ("good",)
    assert "/update_weights_from_tensor answered 400" in report.failed["stuck"]


async def test_room_is_made_before_engines_are_asked_and_nobody_is_served_while_the_trainer_has_the_memory(
    redis: Redis, publisher: WeightPublisher
) -> None:
    one, late, stream = ReceivedWeights(), ReceivedWeights(), Keys(RUN).stream(WEIGHTS)
    announced: list[int] = []

    async def make_room() -> None:
        announced.append(await redis.xlen(stream))

    joiners = asyncio.create_task(publisher.serve_joiners())
    async with sidecar(redis, "one", one):
        report = await publisher.publish(publisher.stage(0, 0, weights(0)), make_room)
        assert report is not None and "make_room" in report.seconds
        await publisher.stand_back()
        async with sidecar(redis, "late", late):
            await until(lambda: _is_up(redis, "late"))
            looks = [await publisher._serve_joiners_once() for _ in range(3)]
            assert (looks, await redis.xlen(stream)) == ([False] * 3, 1)
            report = await publisher.publish(publisher.stage(1, 1, weights(1)), make_room)
            assert report is not None
            assert report.done == ("late", "one")
    await end(joiners)
    assert announced == [0, 1]


async def _is_up(redis: Redis, name: str) -> bool:
    return name in await present(redis, RUN, "engine-up")
