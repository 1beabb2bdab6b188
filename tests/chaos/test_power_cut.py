"""A file that grows, and the process that writes it."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.power_cut import AppendOnlyFile
from shared.tasks import end
from tests.conftest import until

OLD, NEW = b"old\n" * 10, b"new\n" * 3


@pytest.fixture
def writer() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["appendonly.aof", "appendonlydir/appendonly.aof.1.incr.aof"])
async def test_a_cut_kills_the_server_and_leaves_the_file_of_a_moment_ago(
    tmp_path: Path, writer: "subprocess.Popen[bytes]", name: str
) -> None:
    path, file = tmp_path / name, AppendOnlyFile(tmp_path)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(OLD)
    watching = asyncio.create_task(file.watch())
    await until(_later(0.1))
    written = time.monotonic()
    path.write_bytes(OLD + NEW)
    await until(_later(0.1))
    assert file.cut(writer.pid, lost_s=time.monotonic() - written + 0.05) == len(NEW)
    await end(watching)
    assert path.read_bytes() == OLD
    assert writer.wait(5) == -9


async def test_a_file_that_did_not_grow_lately_stays_whole(tmp_path: Path, writer: "subprocess.Popen[bytes]") -> None:
    path, file = tmp_path / "appendonly.aof", AppendOnlyFile(tmp_path)
    path.write_bytes(OLD)
    watching = asyncio.create_task(file.watch())
    await until(_later(0.1))
    assert file.cut(writer.pid, lost_s=0.02) == 0
    await end(watching)
    assert path.read_bytes() == OLD


def _later(seconds: float) -> "Callable[[], asyncio.Future[bool]]":
    """A condition that comes true after so many seconds of looking."""
    at = time.monotonic() + seconds

    async def reached() -> bool:
        return time.monotonic() > at

    return lambda: asyncio.ensure_future(reached())
