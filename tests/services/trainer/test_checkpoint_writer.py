"""The writer beside the loop: one checkpoint at a time, durable before what relies on it, lost by no cancellation."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.backend import State
from services.trainer.checkpoint import Checkpoints, Writing
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.compute_thread import ComputeThread
from services.trainer.ranks import OneRank
from shared.logs import Log
from shared.tasks import end
from tests.conftest import until


class Held:
    """Stands in front of a method of Checkpoints: who comes waits until he may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.come, self._go = threading.Event(), threading.Event()
        original = getattr(Checkpoints, name)

        def held(*args: Any, **kwargs: Any) -> Any:
            self.come.set()
            assert self._go.wait(20)
            return original(*args, **kwargs)

        monkeypatch.setattr(Checkpoints, name, held)

    async def has_come(self) -> bool:
        return self.come.is_set()

    def go_on(self) -> None:
        self._go.set()


class OneWeight:
    """As much of a learner as a checkpoint needs."""

    def __init__(self) -> None:
        self.weight = torch.zeros(3)

    def state(self) -> State:
        return {"weights": {"w": self.weight}}


class Writer:
    """A writer into a folder, and what became durable."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder, "a", 2, Log("trainer"), OneRank())
        self.compute, self.learner = ComputeThread(1), OneWeight()
        self.writer = CheckpointWriter(self.checkpoints, self.compute, Log("trainer"))
        self.durable: list[list[int]] = []

    async def begin(self, step: int) -> None:
        learner: Any = self.learner
        await self.writer.begin(step, learner, {}, self.note)

    async def note(self) -> None:
        self.durable.append(self.checkpoints.steps())


@pytest.fixture
async def writing(tmp_path: Path) -> AsyncIterator[Writer]:
    writer = Writer(tmp_path / "checkpoints")
    yield writer
    await writer.writer.close()
    writer.compute.close()


async def test_the_state_is_that_of_the_beginning_and_what_relies_on_it_comes_after(
    writing: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, "finish")
    await writing.begin(2)
    await until(held.has_come)
    writing.learner.weight += 1
    writing.writer.check()
    assert (writing.checkpoints.steps(), writing.durable) == ([], [])
    held.go_on()
    await writing.writer.settle()
    assert writing.durable == [[2]]
    assert writing.checkpoints.read(2).state()["weights"]["w"].tolist() == [0, 0, 0]


async def test_the_next_one_waits_for_the_one_before(writing: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, "finish")
    await writing.begin(2)
    writing.learner.weight += 1
    second = asyncio.create_task(writing.begin(4))
    await until(held.has_come)
    assert not second.done()
    held.go_on()
    await second
    await writing.writer.settle()
    assert writing.durable == [[2], [2, 4]]
    assert writing.checkpoints.read(4).state()["weights"]["w"].tolist() == [1, 1, 1]


async def test_what_writing_raises_is_raised_by_whoever_asks(writing: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Checkpoints, written: Writing) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Checkpoints, "finish", fail)
    await writing.begin(2)
    with pytest.raises(OSError, match="no space left"):
        await writing.writer.settle()
    with pytest.raises(OSError, match="no space left"):
        writing.writer.check()
    with pytest.raises(OSError, match="no space left"):
        await writing.begin(4)
    await writing.writer.close()
    assert writing.durable == []


@pytest.mark.parametrize("name", ["begin", "finish"])
async def test_after_close_nothing_is_written_even_if_all_that_waited_for_it_was_cancelled_again_and_again(
    writing: Writer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = Held(monkeypatch, name)
    steps_at_close: list[list[int]] = []

    async def train_and_close() -> None:
        try:
            await writing.begin(2)
            await writing.writer.settle()
        finally:
            try:
                await writing.writer.close()
            finally:
                steps_at_close.append(writing.checkpoints.steps())

    training = asyncio.create_task(train_and_close())
    await until(held.has_come)
    ended = asyncio.create_task(end(training))  # cancels it every 0.2 seconds
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(ended), 0.7)
    assert steps_at_close == []
    held.go_on()
    await ended
    assert training.cancelled()
    assert steps_at_close == [[2]]
    assert [path.name for path in writing.checkpoints.folder.iterdir()] == ["step_000002"]
