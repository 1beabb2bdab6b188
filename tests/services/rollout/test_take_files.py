"""Versions in files from the trainer's publisher to a sidecar: refused by name where they are wrong, then healed."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from services.rollout.host_copy import HostCopy
from services.trainer.file_transport import FileTransport
from services.trainer.publish_weights import Deadlines, PublishReport, WeightPublisher
from services.trainer.step_ledger import StepLedger
from services.trainer.version_writer import RunFiles, VersionWriter
from shared.enrolment import read_part
from shared.errors import FencedOut, SluiceError
from shared.logs import Log
from shared.messages import Event, WeightVersion
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, WEIGHTS, Keys
from shared.weight_files import DELTA
from shared.weight_store import WeightStore
from tests.conftest import until
from tests.services.rollout.following_engine import Engine
from tests.services.trainer.written_versions import PIECE, model_folder, train, weights

RUN = "r1"
UPDATE = [
    "/pause_generation",
    "/update_weights_from_disk",
    "/flush_cache",
    "/weights_checker",
    "/continue_generation",
]


@dataclass
class Trainer:
    """The trainer's side: a model, its versions and their publisher."""

    redis: Redis
    home: Path
    deltas: bool = True
    seed: int = 0
    keep: int = 2
    enrol_s: float = 5
    update_s: float = 20
    at_once: int = 0
    store: str = ""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    async def open(self) -> "Trainer":
        self.tensors = weights(self.seed)
        ledger, log = StepLedger(self.redis, RUN), Log("trainer")
        await ledger.take_over()
        about = RunFiles(RUN, "owner", ledger.epoch, model_folder(self.home / "model"), "bfloat16")
        self.files = WeightStore(self.store or str(self.home / "store"))
        writer = VersionWriter(self.files, about, 100 if self.deltas else None, PIECE)
        self.transport = FileTransport(ledger, writer, self.keep, self.enrol_s, self.at_once, log)
        waits = Deadlines(self.enrol_s, self.update_s, 5)
        self.publisher = WeightPublisher(ledger, "", log, 1, deadlines=waits, transport=self.transport)
        return self

    async def publish(self, version: int) -> PublishReport:
        train(self.tensors, version)
        return await self.publisher.publish(self.publisher.stage(version, version, self.tensors.items()))

    @contextlib.contextmanager
    def in_a_hurry(self, enrol_s: float, update_s: float) -> Iterator[None]:
        """One round, with little time."""
        publisher, announcer = self.publisher, self.transport._announcer
        before = publisher._deadlines, announcer._enrol_s
        publisher._deadlines, announcer._enrol_s = Deadlines(enrol_s, update_s), enrol_s
        yield
        publisher._deadlines, announcer._enrol_s = before

    def folders(self) -> list[str]:
        return [folder.partition("-e")[0] for folder in self.files.folders()]


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.rollout.version_chain.VISIBLE_S", 0.0)
    monkeypatch.setattr("services.trainer.file_transport.WRITE_PAUSE_S", 0.0)


async def refusals(redis: Redis) -> list[str]:
    events = [event for _, event in await Stream[Event](redis, RUN, EVENTS).read()]
    return [event.detail["refusal"] for event in events if event.event == "weights_refused"]


@pytest.mark.parametrize(("store", "deltas"), [("", True), ("memory://publisher", True), ("", False)])
async def test_versions_are_loaded_while_the_engine_is_paused_and_proven(
    redis: Redis, tmp_path: Path, store: str, deltas: bool
) -> None:
    trainer = await Trainer(redis, tmp_path, deltas, store=store).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        for version in range(4):
            report = await trainer.publish(version)
            assert (report.done, report.failed, report.unverified) == (("engine-a",), {}, ())
            assert engine.holds(trainer.tensors)
    assert engine.server.calls == 4 * UPDATE
    assert engine.server.versions == ["0", "1", "2", "3"]
    assert set(engine.server.folders) == {tmp_path / "host" / "model"}
    assert await refusals(redis) == []
    assert (await Ledger(redis, Keys(RUN)).counters())["weight_version"] == 3


async def test_an_engine_serves_on_while_the_wave_before_it_loads(redis: Redis, tmp_path: Path) -> None:
    trainer = await Trainer(redis, tmp_path, at_once=1).open()
    one, other = Engine(redis, tmp_path / "host"), Engine(redis, tmp_path / "host-b", "engine-b")
    async with one.following() as first, other.following() as second:
        first.server.may_load.clear()
        publishing = asyncio.create_task(trainer.publish(0))
        await asyncio.wait_for(first.server.is_loading.wait(), 5)
        assert second.server.calls == []
        first.server.may_load.set()
        assert (await publishing).done == ("engine-a", "engine-b")


async def test_an_announcement_names_the_files_and_what_they_build_on(redis: Redis, tmp_path: Path) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following():
        for version in range(2):
            await trainer.publish(version)
    first, second = [version for _, version in await Stream[WeightVersion](redis, RUN, WEIGHTS).read()]
    assert first.files is not None and second.files is not None
    assert (first.files.kind, second.files.kind) == ("full", "delta")
    assert (second.files.base_version, second.files.base_checksum) == (0, first.checksum)
    assert second.files.store == str(tmp_path / "store")


async def test_full_versions_on_a_path_are_read_where_they_are_and_old_ones_go(redis: Redis, tmp_path: Path) -> None:
    trainer = await Trainer(redis, tmp_path, deltas=False).open()
    async with Engine(redis, tmp_path / "host", in_place=True).following() as engine:
        for version in range(4):
            assert (await trainer.publish(version)).done == ("engine-a",)
            assert engine.holds(trainer.tensors)
    assert trainer.folders() == ["v000002-full", "v000003-full"]
    assert engine.server.folders[-1].parent == tmp_path / "store"
    assert not (tmp_path / "host").exists()


async def test_a_damaged_delta_is_refused_by_name_and_the_version_comes_in_full_at_once(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        await trainer.publish(0)
        damage_on_writing(monkeypatch, DELTA)
        report = await trainer.publish(1)
        assert (report.done, report.failed) == (("engine-a",), {})
        assert engine.holds(trainer.tensors)
    assert await refusals(redis) == ["damaged_version"]
    assert trainer.folders() == ["v000000-full", "v000001-delta", "v000001-full"]
    assert engine.server.versions == ["0", "1"]
    assert engine.server.calls == [*UPDATE, "/continue_generation", *UPDATE], "it generates between its two tries"


async def test_a_damaged_version_on_a_path_is_refused_before_the_engine_is_paused(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path, deltas=False).open()
    async with Engine(redis, tmp_path / "host", in_place=True).following() as engine:
        damage_on_writing(monkeypatch, "model.safetensors")
        assert (await trainer.publish(0)).done == ("engine-a",)
        assert engine.holds(trainer.tensors)
    assert await refusals(redis) == ["damaged_version"]
    assert engine.server.calls == ["/continue_generation", *UPDATE]


async def test_a_lost_base_is_refused_by_name_and_a_joiner_gets_the_version_in_full(
    redis: Redis, tmp_path: Path
) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following():
        first, _ = [await trainer.publish(version) for version in range(2)]
    assert first.done == ("engine-a",)
    trainer.files.remove(next(folder for folder in trainer.files.folders() if folder.startswith("v000000")))
    joiners = asyncio.create_task(trainer.publisher.serve_joiners())
    async with Engine(redis, tmp_path / "other-host", "late").following() as late:
        await until(lambda: _is_proven(late), 60)
    await end(joiners)
    assert late.holds(trainer.tensors)
    assert await refusals(redis) == ["missing_link"]


async def test_a_copy_of_an_earlier_trainer_is_refused_by_name_and_made_anew(redis: Redis, tmp_path: Path) -> None:
    """The host did not see the full version with which the new trainer began."""
    earlier = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following():
        for version in range(4):
            await earlier.publish(version)
    trainer = await Trainer(redis, tmp_path, seed=1).open()
    async with Engine(redis, tmp_path / "other-host", "engine-b").following():
        await trainer.publish(1)
        async with Engine(redis, tmp_path / "host").following() as engine:
            report = await trainer.publish(2)
            assert set(report.done) == {"engine-a", "engine-b"}
            assert engine.holds(trainer.tensors)
    assert await refusals(redis) == ["stale_copy"]


async def test_a_trainer_that_died_before_the_announcement_is_followed_by_one_that_starts_anew(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path, keep=1).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        await trainer.publish(0)
        with monkeypatch.context() as patch:
            patch.setattr(StepLedger, "announce", _die)
            with pytest.raises(Killed):
                await trainer.publish(1)
        resumed = await Trainer(redis, tmp_path, seed=2, keep=1).open()
        report = await resumed.publish(1)
        assert report.done == ("engine-a",)
        assert engine.holds(resumed.tensors), "the first version of a resumed trainer is what it resumed"
        assert (await resumed.publish(2)).done == ("engine-a",)
        assert engine.holds(resumed.tensors)
    assert await refusals(redis) == []
    assert resumed.folders() == ["v000001-full", "v000002-delta"], "what was never announced is gone"


async def test_what_an_engine_still_reads_is_not_deleted(redis: Redis, tmp_path: Path) -> None:
    """It does not answer in time; the versions after it come and go meanwhile."""
    trainer = await Trainer(redis, tmp_path, deltas=False, keep=1).open()
    slow = Engine(redis, tmp_path / "host", "slow", in_place=True)
    async with slow.following(), Engine(redis, tmp_path / "host", in_place=True).following():
        await trainer.publish(0)
        slow.server.may_load.clear()
        with trainer.in_a_hurry(enrol_s=3, update_s=3):
            assert set((await trainer.publish(1)).failed) == {"slow"}
        for version in (2, 3):
            await trainer.publish(version)
        assert trainer.folders() == ["v000001-full", "v000003-full"]
        slow.server.may_load.set()
        joiners = asyncio.create_task(trainer.publisher.serve_joiners())
        await until(lambda: _has(redis, "slow", 3), 60)
        assert slow.holds(trainer.tensors)
        await end(joiners)
        assert set((await trainer.publish(4)).done) == {"slow", "engine-a"}
    assert trainer.folders() == ["v000004-full"]


async def test_files_that_do_not_come_in_time_leave_the_engine_generating_with_what_it_has(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        await trainer.publish(0)
        held = HostCopy(tmp_path / "host")._lock.for_writing(lambda: None)
        with trainer.in_a_hurry(enrol_s=1, update_s=0.2):
            assert list((await trainer.publish(1)).failed) == ["engine-a"]
        await until(lambda: _called(engine, "/continue_generation", 2), 60)
        held.release()
        assert (await trainer.publish(2)).done == ("engine-a",)
        assert engine.holds(trainer.tensors)
    assert set(await refusals(redis)) == {"files_late"}


async def test_an_engine_is_not_given_up_for_a_store_that_cannot_be_read(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        await trainer.publish(0)
        with monkeypatch.context() as patch:
            patch.setattr(WeightStore, "read", _no_access)
            for version in range(1, 3):
                report = await trainer.publish(version)
                assert "no access" in report.failed["engine-a"]
        assert (await trainer.publish(3)).done == ("engine-a",)
        assert engine.holds(trainer.tensors)
    assert await refusals(redis) == 4 * ["store_away"], "two rounds each"
    assert [kind for kind in trainer.folders() if kind.endswith("full")] == ["v000000-full"], "nothing was damaged"


async def test_a_trainer_that_was_replaced_announces_nothing_and_deletes_nothing(redis: Redis, tmp_path: Path) -> None:
    trainer = await Trainer(redis, tmp_path, deltas=False, keep=1).open()
    async with Engine(redis, tmp_path / "host", in_place=True).following() as engine:
        await trainer.publish(5)
        resumed = await Trainer(redis, tmp_path, deltas=False, keep=1, seed=1).open()
        await resumed.publish(4)
        with pytest.raises(FencedOut):
            await trainer.publish(6)
        assert engine.holds(resumed.tensors)
    assert "v000004-full" in trainer.folders()


async def test_a_store_that_cannot_be_written_to_is_tried_again_and_then_named(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await Trainer(redis, tmp_path).open()
    async with Engine(redis, tmp_path / "host").following() as engine:
        fail_writing(monkeypatch, times=3)
        assert (await trainer.publish(0)).done == ("engine-a",)
        assert engine.holds(trainer.tensors)
        fail_writing(monkeypatch, times=99)
        with pytest.raises(SluiceError, match=r"weight version 1 cannot be written to .*No space left on device"):
            await trainer.publish(1)
    events = [event.event for _, event in await Stream[Event](redis, RUN, EVENTS).read()]
    assert events.count("weights_not_written") == 3 + 4


class Killed(BaseException):
    """The trainer ends here."""


def _no_access(*_: Any) -> bytes:
    raise PermissionError("no access")


async def _die(*_: Any) -> None:
    raise Killed


def damage_on_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The last byte of the next file of this name is another one when it is read."""
    original, state = WeightStore._write, {"done": False}

    def write(self: WeightStore, path: str, parts: Any) -> None:
        if path.endswith(name) and not state["done"]:
            state["done"] = True
            content = bytearray(b"".join(bytes(part) for part in parts))
            content[-1] ^= 1
            parts = [bytes(content)]
        original(self, path, parts)

    monkeypatch.setattr(WeightStore, "_write", write)


def fail_writing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    original, left = WeightStore._write, {"times": times}

    def write(self: WeightStore, path: str, parts: Any) -> None:
        if left["times"] > 0:
            left["times"] -= 1
            raise OSError(28, "No space left on device")
        original(self, path, parts)

    monkeypatch.setattr(WeightStore, "_write", write)


async def _is_proven(engine: Engine) -> bool:
    return engine.proven > 0


async def _has(redis: Redis, name: str, version: int) -> bool:
    part = await read_part(redis, Keys(RUN), version, name)
    return part is not None and part.state == "done"


async def _called(engine: Engine, path: str, times: int) -> bool:
    return engine.server.calls.count(path) >= times
