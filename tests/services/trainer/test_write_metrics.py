"""Metrics of committed steps in a run's places, through the loop on a real Redis: once each, whatever fails."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer import write_metrics
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.metrics_feed import Patience
from services.trainer.sinks import choose_sinks, jsonl
from services.trainer.sinks.jsonl import JsonLines
from services.trainer.sinks.sink import Place, Row
from services.trainer.step_ledger import StepLedger
from shared.errors import RunRejected
from shared.messages import Event, StepCommit
from shared.streams import Stream
from shared.topology import EVENTS
from tests.services.trainer.bench import Bench, Killed, kill_at
from tests.services.trainer.recorded_groups import feed
from tests.services.trainer.test_rewind import Rollback

QUICK = Patience(poll_s=0.01, deadline_s=0.1, longest_pause_s=0.02)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_metrics, "Patience", lambda: QUICK)


def rows(bench: Bench) -> list[dict[str, float]]:
    return [json.loads(line) for line in (bench.folder / "metrics" / jsonl.NAME).read_text("utf-8").splitlines()]


async def committed(bench: Bench) -> list[dict[str, float]]:
    found = [one for one in await bench.records() if isinstance(one, StepCommit)]
    return [{"step": one.step, **one.metrics} for one in found]


async def told(redis: Redis, name: str) -> list[dict[str, Any]]:
    return [e.detail for _, e in await Stream[Event](redis, "r1", EVENTS).read() if e.event == name]


class Broken(JsonLines):
    """A sink that fails, or hangs, as the class says for all."""

    failures = 0
    hold: threading.Event | None = None
    entered: threading.Event | None = None

    def write(self, rows: Sequence[Row]) -> None:
        if type(self).entered is not None:
            type(self).entered.set()
        if type(self).hold is not None:
            assert type(self).hold.wait(30)
        if type(self).failures:
            type(self).failures -= 1
            self._file.write('{"step": 77, "cut')  # as a full disk leaves it
            self._file.flush()
            raise OSError("no space left on device")
        super().write(rows)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Broken]]:
    opened: list[Broken] = []

    class Own(Broken):
        def __init__(self, place: Place, newest: int) -> None:
            super().__init__(place, newest)
            opened.append(self)

    monkeypatch.setitem(choose_sinks.OPENERS, "jsonl", Own)
    yield Own
    for sink in opened:
        sink.close()  # a run does not wait for a sink that does not end


async def test_a_finished_run_has_a_line_for_each_commit(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path)
    await feed(redis, "r1", range(12))
    await bench.train()
    assert rows(bench) == await committed(bench)
    assert [row["step"] for row in rows(bench)] == [1, 2, 3, 4]


async def test_steps_that_are_trained_again_after_a_crash_are_written_once(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, CheckpointWriter, "begin", call=2)
    bench = Bench(redis, tmp_path, trainer={"steps": 5})
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await bench.train()
    with (bench.folder / "metrics" / jsonl.NAME).open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # what the kill cut off
    await bench.train()
    assert rows(bench) == await committed(bench)


@pytest.mark.parametrize(("begin", "end"), [(1, 3), (3, 5)])
async def test_rows_of_steps_that_redis_lost_are_replaced(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: int, end: int
) -> None:
    rollback = Rollback(monkeypatch, "commit", begin, end, range(21))
    written = asyncio.Event()
    original = StepLedger.commit

    async def once_written(ledger: StepLedger, intent: Any, *args: Any) -> Any:
        if intent.step == end and not rollback.done:
            async with asyncio.timeout(20):
                while len(rows(bench)) < end - 1:
                    await asyncio.sleep(0.01)
            written.set()
        return await original(ledger, intent, *args)

    monkeypatch.setattr(StepLedger, "commit", once_written)
    bench = Bench(redis, tmp_path, trainer={"steps": 7})
    await feed(redis, "r1", range(21))
    await bench.train()
    assert rollback.done and written.is_set()
    assert rows(bench) == await committed(bench)
    assert [row["step"] for row in rows(bench)] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_sink_that_fails_is_tried_again_told_of_once_and_misses_nothing(
    redis: Redis, tmp_path: Path, broken: type[Broken]
) -> None:
    broken.failures = 3
    bench = Bench(redis, tmp_path)
    await feed(redis, "r1", range(12))
    await bench.train()
    assert rows(bench) == await committed(bench)
    failed = await told(redis, "metrics_sink_failed")
    assert [(one["sink"], one["after_step"]) for one in failed] == [("jsonl", 0)]
    assert "no space left" in failed[0]["error"]


async def test_a_sink_that_fails_for_ever_does_not_hold_the_run_and_its_missing_rows_are_told(
    redis: Redis, tmp_path: Path, broken: type[Broken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_metrics, "CLOSE_S", 0.1)
    broken.failures = 10**9
    bench = Bench(redis, tmp_path)
    await feed(redis, "r1", range(12))
    await asyncio.wait_for(bench.train(), 30)
    assert await bench.state() == "finished"
    assert await told(redis, "metrics_not_written") == [{"sink": "jsonl", "from_step": 1, "to_step": 4}]


async def test_a_sink_that_hangs_does_not_hold_the_steps_and_gets_them_all_when_it_comes_back(
    redis: Redis, tmp_path: Path, broken: type[Broken]
) -> None:
    broken.hold, broken.entered = threading.Event(), threading.Event()
    bench = Bench(redis, tmp_path)
    await feed(redis, "r1", range(3))
    training = asyncio.create_task(bench.train())
    assert await asyncio.to_thread(broken.entered.wait, 20)
    await feed(redis, "r1", range(3, 9))
    async with asyncio.timeout(20):
        while len(await committed(bench)) < 3:
            await asyncio.sleep(0.01)
    assert rows(bench) == []
    broken.hold.set()
    await feed(redis, "r1", range(9, 12))
    await asyncio.wait_for(training, 20)
    assert rows(bench) == await committed(bench)


async def test_a_trainer_that_is_fenced_out_writes_no_rows(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 2})
    await feed(redis, "r1", range(6))
    await bench.train()
    ledger = StepLedger(redis, "r1")
    await ledger.take_over()
    old = write_metrics.CommitReader(Stream(redis, "r1", write_metrics.STEPS), ledger)
    assert [row.step for row in await old.after(0)] == [1, 2]
    await StepLedger(redis, "r1").take_over()
    assert await old.after(0) == []


async def test_a_new_run_of_an_old_name_begins_its_own_file(redis: Redis, tmp_path: Path) -> None:
    first = Bench(redis, tmp_path, trainer={"steps": 2})
    await feed(redis, "r1", range(6))
    await first.train()
    before = rows(first)
    await redis.flushdb()
    second = Bench(redis, tmp_path, trainer={"steps": 3})
    await feed(redis, "r1", range(9))
    await second.train()
    assert rows(second) == await committed(second)
    aside = next(second.folder.glob("metrics_*"))
    assert [json.loads(line) for line in (aside / jsonl.NAME).read_text("utf-8").splitlines()] == before


async def test_a_sink_that_is_not_installed_is_refused_with_what_to_install(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_sinks, "find_spec", lambda name: None)
    bench = Bench(redis, tmp_path, metrics={"sinks": ["jsonl", "wandb", "trackio"]})
    with pytest.raises(RunRejected, match=r"pip install 'sluice-rl\[wandb,trackio\]'"):
        await bench.train()


async def test_a_run_without_sinks_trains(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, metrics={"sinks": []}, trainer={"steps": 1})
    await feed(redis, "r1", range(3))
    await bench.train()
    assert list((bench.folder / "metrics").iterdir()) == [bench.folder / "metrics" / "OWNER"]
