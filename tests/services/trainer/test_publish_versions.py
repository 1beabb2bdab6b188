"""Versions while training goes on: the newest replaces one that waits, and each is the weights of exactly its step."""

import asyncio
from pathlib import Path
from typing import Any

import torch
from redis.asyncio import Redis

from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.compute_thread import ComputeThread
from services.trainer.evaluation_gate import EvaluationGate
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.publish_versions import PublishedVersions
from services.trainer.publish_weights import Deadlines, WeightPublisher
from services.trainer.step_ledger import StepLedger
from services.trainer.weight_hashes import checksum
from shared.await_redis import AwaitRedis
from shared.logs import Log
from shared.tasks import end
from shared.topology import Keys
from shared.version_ledger import read_records
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.receiving_engine import ReceivingEngine
from tests.services.trainer.recorded_groups import run_settings, small_model

RUN = "r1"


class Training:
    """A real model whose weights are published after every step, and the checksums that they had right then."""

    def __init__(self, redis: Redis, folder: Path, **sections: Any) -> None:
        settings, log = run_settings(small_model(folder / "model"), **sections), Log("trainer")
        policy = load_policy(folder / "model", False, 1.0, torch.device("cpu"))
        self.backend = TorchBackend(policy, torch.float32, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder / "model")
        deadlines = Deadlines(enrol_s=5, update_s=20, first_engine_s=5)
        self.publisher = WeightPublisher(StepLedger(redis, RUN), "127.0.0.1", log, 1, deadlines=deadlines)
        self.compute = ComputeThread(1)
        await_redis = AwaitRedis(log, RUN)
        gate = EvaluationGate(redis, settings, self._never, await_redis, log)
        self.versions = PublishedVersions(self.publisher, self.backend.named_tensors, self.compute, gate, 0)
        self.checksums: dict[int, str] = {}
        self._batches = of_groups(range(3))

    async def step(self, number: int, at_once: bool = False) -> None:
        """Step 0 only offers what training begins with."""
        if number:
            await self.compute.run(self.backend.train_step, self._batches, sft_loss, 1e-2, number)
        self.checksums[number] = await self.compute.run(self._checksum)
        await self.versions.offer(number, at_once)

    async def close(self) -> None:
        await self.versions.close()
        await self.publisher.close()
        self.compute.close()

    def _checksum(self) -> str:
        return checksum(dict(self.backend.named_tensors()), "cpu")

    async def _never(self) -> bool:
        return False


async def test_training_goes_on_while_an_engine_takes_its_time_and_no_version_is_torn(
    redis: Redis, tmp_path: Path
) -> None:
    training, engine = Training(redis, tmp_path), ReceivingEngine(redis, RUN, "one")
    living = asyncio.create_task(engine.live())
    await training.step(0)
    await training.versions.settle()
    engine.is_open.clear()
    async with asyncio.timeout(10):
        for number in range(1, 6):
            await training.step(number)
    assert sorted(engine.received) == [0]
    engine.is_open.set()
    for number in range(6, 30):
        await training.step(number)
    await training.versions.settle()
    await end(living)
    await training.close()
    received = {version: checksum(tensors, "cpu") for version, tensors in engine.received.items()}
    assert received == {version: training.checksums[version] for version in received}
    assert {0, 29} <= received.keys()
    assert not {2, 3} & received.keys(), "versions that waited were to be replaced by the newest"
    assert len(set(training.checksums.values())) == 30


async def test_a_version_that_is_to_be_evaluated_is_published_whatever_comes_after_it(
    redis: Redis, tmp_path: Path
) -> None:
    evaluation = {"datasets": ["held_out"], "every": 2, "deadline_s": 60}
    training = Training(redis, tmp_path, eval=evaluation, trainer={"steps": 100})
    engine = ReceivingEngine(redis, RUN, "one")
    for version in range(0, 10, 2):
        tally: dict[Any, Any] = {"held_out|groups": 1, "held_out|done": 1}
        await redis.hset(Keys(RUN).evaluation(version), mapping=tally)
    living = asyncio.create_task(engine.live())
    for number in range(10):
        await training.step(number)
    await training.versions.settle()
    await end(living)
    await training.close()
    assert {0, 2, 4, 6, 8, 9} <= engine.received.keys()


async def test_a_version_that_goes_back_waits_for_no_evaluation_and_is_published_whatever_comes_after_it(
    redis: Redis, tmp_path: Path
) -> None:
    evaluation = {"datasets": ["held_out"], "every": 2, "deadline_s": 3600}
    training = Training(redis, tmp_path, eval=evaluation, trainer={"steps": 100})
    engine = ReceivingEngine(redis, RUN, "one")
    tally: dict[Any, Any] = {"held_out|groups": 1, "held_out|done": 1}
    await redis.hset(Keys(RUN).evaluation(0), mapping=tally)
    living = asyncio.create_task(engine.live())
    async with asyncio.timeout(60):
        for number in range(3):
            await training.step(number)
        await training.step(3, at_once=True)
        await training.step(4)
        await training.versions.settle()
    await end(living)
    await training.close()
    assert {0, 2, 3, 4} <= engine.received.keys()


async def test_a_version_that_was_replaced_before_it_was_published_has_no_record(redis: Redis, tmp_path: Path) -> None:
    training, engine = Training(redis, tmp_path), ReceivingEngine(redis, RUN, "one")
    living = asyncio.create_task(engine.live())
    await training.step(0)
    await training.versions.settle()
    engine.is_open.clear()
    for number in range(1, 6):
        await training.step(number)
    engine.is_open.set()
    await training.versions.settle()
    await end(living)
    await training.close()
    records = await read_records(redis, Keys(RUN), range(6))
    assert records.keys() == engine.received.keys() < set(range(6))
    assert {version: record.checksum for version, record in records.items()} == {
        version: training.checksums[version] for version in records
    }
