"""Whoever changes the folder is alone; the lock of a process that is gone is free."""

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from services.rollout.copy_lock import CopyLock
from services.rollout.refused_files import FilesLate

LIFE_S = 60


def test_several_read_and_one_writes(tmp_path: Path) -> None:
    lock = CopyLock(tmp_path / "lock")
    one, two = lock.for_reading(late_at_once), lock.for_reading(late_at_once)
    with pytest.raises(FilesLate):
        lock.for_writing(late_at_once)
    one.release()
    one.release()
    two.release()
    with lock.for_writing(late_at_once), pytest.raises(FilesLate):
        lock.for_reading(late_at_once)
    lock.for_reading(late_at_once).release()


def test_the_lock_of_a_process_that_is_killed_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path / "lock", ready))
    holder.start()
    assert ready.wait(LIFE_S)
    with pytest.raises(FilesLate):
        CopyLock(tmp_path / "lock").for_reading(late_at_once)
    holder.kill()
    holder.join(LIFE_S)
    CopyLock(tmp_path / "lock").for_writing(late_at_once).release()


def hold_lock(file: Path, ready: Any) -> None:
    CopyLock(file).for_writing(late_at_once)
    ready.set()
    threading.Event().wait()


def late_at_once() -> None:
    raise FilesLate("the lock is taken")
