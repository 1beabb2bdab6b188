"""Redis that lost its last writes: the trainer goes back in process, and every group is in exactly one step."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer import serve_run
from services.trainer.checkpoint import Checkpoints, Writing
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.step_ledger import StepLedger
from shared.errors import FencedOut, RunRejected
from shared.messages import Event, StepIntent
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS
from tests.conftest import until
from tests.services.trainer.bench import KEYS, Bench, outcome, until_version
from tests.services.trainer.recorded_groups import feed

STEPS, GROUPS = 7, 21
Snapshot = dict[bytes, bytes]


async def snapshot(redis: Redis) -> Snapshot:
    keys = await redis.keys("*")
    async with redis.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.dump(key)
        return {key: value for key, value in zip(keys, await pipe.execute(), strict=True) if value is not None}


async def restore(redis: Redis, saved: Snapshot) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushdb()
        for key, value in saved.items():
            pipe.restore(key, 0, value)
        await pipe.execute()


class Rollback:
    """Redis as it was right after (or before) a write of step `begin`, put back after the same write of step `end`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        begin: int,
        end: int,
        again: range,
        saved: Snapshot | None = None,
    ) -> None:
        self._original: Any = getattr(StepLedger, name)
        self._begin, self._end, self._again = begin, end, again
        self._saved: Snapshot = saved or {}
        self.done = False
        rollback = self

        async def watched(ledger: StepLedger, intent: StepIntent, *args: Any) -> None:
            await rollback._write(ledger, intent, *args)

        monkeypatch.setattr(StepLedger, name, watched)

    async def _write(self, ledger: StepLedger, intent: StepIntent, *args: Any) -> None:
        redis = ledger.redis
        await self._original(ledger, intent, *args)
        if intent.step == self._begin and not self._saved:
            self._saved = await snapshot(redis)
        if intent.step == self._end and not self.done:
            self.done = True
            await restore(redis, self._saved)
            await feed(redis, "r1", self._again)  # what was lost is generated and scored again


async def trained_by(bench: Bench) -> list[int]:
    return [group for r in await bench.records() if isinstance(r, StepIntent) for group in r.group_ids]


@pytest.mark.parametrize("name", ["intend", "commit"])
@pytest.mark.parametrize(("begin", "end"), [(1, 3), (3, 5), (4, 6), (4, 5)])
async def test_a_rolled_back_redis_makes_the_trainer_go_back_and_the_run_ends_as_if_nothing_had_been(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, begin: int, end: int
) -> None:
    unhurt = Bench(redis, tmp_path / "unhurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    await unhurt.train()
    expected = await outcome(unhurt)
    await redis.flushdb()

    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    rollback = Rollback(monkeypatch, name, begin, end, range(GROUPS))
    await asyncio.wait_for(hurt.train(), 60)
    assert rollback.done
    found = await outcome(hurt)
    found.must_equal(expected)
    assert sorted(await trained_by(hurt)) == list(range(GROUPS))
    assert found.ledger["undecided"] == {}
    events = [event for _, event in await Stream[Event](redis, "r1", EVENTS).read()]
    (rewound,) = [event for event in events if event.event == "trainer_rewound"]
    assert rewound.detail["from"] >= begin
    assert rewound.detail["to"] <= begin
    assert not any(counter.startswith("failures") for counter in found.ledger["counters"])


async def test_a_checkpoint_that_is_under_way_when_redis_turns_out_to_be_behind_is_whole_before_the_trainer_goes_back(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurt = Bench(redis, tmp_path / "unhurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    await unhurt.train()
    expected = await outcome(unhurt)
    await redis.flushdb()

    closing, finish, close = threading.Event(), Checkpoints.finish, CheckpointWriter.close

    def late(checkpoints: Checkpoints, writing: Writing) -> None:
        assert writing.step != 4 or closing.wait(20)
        finish(checkpoints, writing)

    async def noted_close(writer: CheckpointWriter) -> None:
        closing.set()
        await close(writer)

    monkeypatch.setattr(Checkpoints, "finish", late)
    monkeypatch.setattr(CheckpointWriter, "close", noted_close)
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    Rollback(monkeypatch, "commit", 3, 5, range(GROUPS))
    await asyncio.wait_for(hurt.train(), 60)
    assert (hurt.folder / "checkpoints" / "ahead_of_ledger_step_000004").is_dir()
    (await outcome(hurt)).must_equal(expected)
    assert sorted(await trained_by(hurt)) == list(range(GROUPS))


async def test_groups_that_redis_lost_while_they_waited_are_trained_once_when_they_come_again(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer holds groups that Redis does not know any more; their attempts come out differently."""
    bench = Bench(redis, tmp_path, trainer={"steps": 4})
    training = asyncio.create_task(bench.train())
    await feed(redis, "r1", range(4))
    await until_version(redis, 1)
    saved = await snapshot(redis)
    await feed(redis, "r1", range(4, 8))
    await until_version(redis, 2)
    await restore(redis, saved)
    await feed(redis, "r1", [7, 6, 5, 4, 8, 9, 10, 11])
    await asyncio.wait_for(training, 60)
    assert sorted(await trained_by(bench)) == list(range(12))
    assert (await outcome(bench)).ledger["undecided"] == {}


async def test_groups_that_redis_lost_with_the_record_of_their_step_do_not_end_the_run(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back before the step has fetched them, and they come again only once the trainer waits for them."""
    bench, rewound = Bench(redis, tmp_path, trainer={"steps": 4}), asyncio.Event()
    await feed(redis, "r1", range(3))
    training = asyncio.create_task(bench.train())
    await until_version(redis, 1)
    Rollback(monkeypatch, "intend", 0, 2, range(0), await snapshot(redis))
    monkeypatch.setattr(serve_run, "tell", _noting(rewound))
    await feed(redis, "r1", range(3, 6))
    gone = asyncio.create_task(rewound.wait())
    await asyncio.wait([gone, training], timeout=20, return_when=asyncio.FIRST_COMPLETED)
    await feed(redis, "r1", range(3, 12))
    await asyncio.wait_for(training, 60)
    assert sorted(await trained_by(bench)) == list(range(12))
    assert (await outcome(bench)).ledger["undecided"] == {}


async def test_groups_whose_deletion_redis_lost_in_the_middle_are_deleted_all_the_same(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, lost = StepLedger.forget, list[int]()

    async def forget_in_vain(ledger: StepLedger, intent: StepIntent) -> None:
        saved = await snapshot(redis)
        await forget(ledger, intent)
        if not lost:
            lost.append(intent.step)
            await restore(redis, saved)

    monkeypatch.setattr(StepLedger, "forget", forget_in_vain)
    bench = Bench(redis, tmp_path, trainer={"steps": 6})
    await feed(redis, "r1", range(18))
    await asyncio.wait_for(bench.train(), 60)
    assert lost == [1]
    assert [group for group in range(18) if await redis.exists(KEYS.group(group))] == [12, 13, 14, 15, 16, 17]


def _noting(told: asyncio.Event) -> Any:
    async def tell(*given: object) -> None:
        told.set()

    return tell


async def test_versions_that_engines_have_beyond_the_point_are_published_again(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    Rollback(monkeypatch, "commit", 3, 6, range(GROUPS))
    await asyncio.wait_for(bench.train(), 60)
    first, second = (noted.published for noted in bench.noted)
    assert max(first) >= 5
    assert set(second) >= {4, 5, 6, 7}


async def test_a_trainer_whose_run_another_one_took_over_ends_and_counts_no_failure(
    redis: Redis, tmp_path: Path
) -> None:
    old = Bench(redis, tmp_path)
    waiting = asyncio.create_task(old.train())
    await until_version(redis, 0)
    new = asyncio.create_task(Bench(redis, tmp_path).train())
    with pytest.raises(FencedOut, match="another trainer took this run over"):
        await asyncio.wait_for(waiting, 20)
    await feed(redis, "r1", range(12))
    await asyncio.wait_for(new, 20)
    assert await old.state() == "finished"


async def test_an_epoch_that_redis_forgot_is_not_given_to_two_trainers(redis: Redis) -> None:
    first, second = StepLedger(redis, "r1"), StepLedger(redis, "r1")
    await first.take_over()
    lost = await redis.dump(KEYS.trainer_epoch)
    await second.take_over()
    await redis.restore(KEYS.trainer_epoch, 0, lost, replace=True)
    await second.take_over()
    await second.check(0)
    with pytest.raises(FencedOut):
        await first.check(0)


async def test_checkpoints_beyond_a_restored_ledger_are_set_aside_and_the_run_ends_the_same(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 6})
    await feed(redis, "r1", range(9))
    training = asyncio.create_task(bench.train())
    await until_version(redis, 3)
    saved = await snapshot(redis)
    await feed(redis, "r1", range(9, 18))
    await asyncio.wait_for(training, 60)
    expected = await outcome(bench)
    await restore(redis, saved)
    await feed(redis, "r1", range(9, 18))
    await asyncio.wait_for(bench.train(), 60)
    (await outcome(bench)).must_equal(expected)
    names = {path.name for path in (bench.folder / "checkpoints").iterdir()}
    assert {"ahead_of_ledger_step_000004", "ahead_of_ledger_step_000006"} <= names


async def test_a_ledger_whose_steps_no_checkpoint_covers_rejects_the_run_by_name(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 6})
    await feed(redis, "r1", range(12))
    training = asyncio.create_task(bench.train())
    await until(lambda: _forgotten(redis, 2), 20)
    await end(training)
    (bench.folder / "checkpoints").rename(tmp_path / "lost")
    with pytest.raises(RunRejected, match=r"no checkpoint in .* is usable at step 2 to 4, and the groups .* start a n"):
        await bench.train()


async def _forgotten(redis: Redis, step: int) -> bool:
    return (await Ledger(redis, KEYS).counters()).get("forgotten_step", 0) >= step
