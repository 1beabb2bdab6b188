"""The supervisor against small real processes: order, restarts, giving up, stopping, being killed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from deploy import keep_running, probe, watch_health
from deploy.probe import is_healthy
from deploy.process import birth
from deploy.services import PortUse, Service
from deploy.stop_leftovers import stop_leftovers
from deploy.supervisor import Supervisor
from deploy.supervisor_state import SupervisorState, only_one, read_state
from shared.deployment import Deployment, PathSettings
from shared.errors import SluiceError
from tests.conftest import until

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_service.py")


def service(
    name: str, *options: str, needs: tuple[str, ...] = (), grace_s: float = 5, deadline_s: float = 20
) -> Service:
    port = free_port()
    return Service(
        name,
        (sys.executable, str(FAKE), str(port), *options),
        f"http://127.0.0.1:{port}/healthz",
        (PortUse(f"{name}.port", "127.0.0.1", port),),
        needs,
        start_deadline_s=deadline_s,
        stop_grace_s=grace_s,
    )


def holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return condition()

    return check


class Running:
    """A supervisor in this event loop."""

    def __init__(self, home: Path, services: list[Service]) -> None:
        deployment = Deployment(paths=PathSettings(home=home))
        self.home, self.stopping, self.ready, self.seen = home, asyncio.Event(), asyncio.Event(), []
        self.supervisor = Supervisor(deployment, home, services, self.seen.append)
        self.task = asyncio.create_task(self.supervisor.run(self.stopping, self.ready.set))

    async def until_ready(self) -> None:
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait({ready, self.task}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert self.ready.is_set(), self.task.done() and self.task.exception()

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 20)

    @property
    def state(self) -> SupervisorState:
        state = read_state(self.home)
        assert state is not None
        return state


async def test_services_start_after_those_they_need_and_stop_before_them(tmp_path: Path) -> None:
    note = tmp_path / "note"
    first = service("first", "--note", str(note))
    second = service("second", "--note", str(note), needs=("first",))
    running = Running(tmp_path, [first, second])
    await running.until_ready()
    assert running.state.phase == "running"
    await running.stop()
    ports = [use.port for s in (first, second) for use in s.ports]
    assert note.read_text().splitlines() == [
        f"start {ports[0]}",
        f"start {ports[1]}",
        f"stop {ports[1]}",
        f"stop {ports[0]}",
    ]
    assert running.state.phase == "stopped"
    assert running.state.leftovers() == {}


async def test_a_service_that_is_killed_comes_back_and_the_reason_is_told(tmp_path: Path) -> None:
    running = Running(tmp_path, [service("worker")])
    await running.until_ready()
    pid = running.state.services["worker"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(holds(lambda: running.state.services["worker"]["restarts"] == 1))
    await until(holds(lambda: running.state.services["worker"]["phase"] == "healthy"))
    assert running.state.services["worker"]["pid"] != pid
    assert "was killed by signal 9" in [condition.reason for condition in running.seen]
    await running.stop()


async def test_a_service_that_cannot_start_stops_everything_with_its_last_lines(tmp_path: Path) -> None:
    running = Running(tmp_path, [service("good"), service("bad", "--die-at-once", "no model at /models/tiny")])
    with pytest.raises(
        SluiceError, match=r"bad cannot start: it ended with exit code 1(.|\n)*no model at /models/tiny"
    ):
        await asyncio.wait_for(running.task, 20)
    assert running.state.phase == "failed"
    assert "no model at /models/tiny" in running.state.failure
    assert running.state.leftovers() == {}


async def test_the_reason_of_a_start_is_told_without_what_earlier_ones_logged(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "bad.log").write_text("no model at /models/corrected\n")
    running = Running(tmp_path, [service("bad", "--die-at-once", "no model at /models/tiny")])
    with pytest.raises(SluiceError) as error:
        await asyncio.wait_for(running.task, 20)
    assert str(error.value).count("no model at") == 1


async def test_a_service_that_is_never_healthy_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    silent = Service("silent", (sys.executable, "-c", "import time; time.sleep(60)"), "http://127.0.0.1:9/healthz", ())
    slow = Service(silent.name, silent.command, silent.health, (), start_deadline_s=0.5, stop_grace_s=1)
    running = Running(tmp_path, [slow])
    with pytest.raises(SluiceError, match=r"silent cannot start: it gave no healthy answer at http://127.0.0.1:9"):
        await asyncio.wait_for(running.task, 20)


def pauses_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two lives of the services, which all are as short as the first one here."""
    pauses: list[float] = []
    judge = keep_running.Keeper._judge

    def short(self: keep_running.Keeper, life: keep_running.Life) -> float:
        pauses.append(judge(self, life))
        return 0.01

    monkeypatch.setattr(keep_running.Keeper, "_judge", short)
    return pauses


async def test_a_service_that_keeps_dying_is_always_started_again_with_longer_and_longer_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = pauses_of(monkeypatch)
    running = Running(tmp_path, [service("steady"), service("worker")])
    await running.until_ready()
    for restarts in range(1, 9):
        await kill_and_wait(running, restarts)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert running.state.services["steady"]["restarts"] == 0
    assert running.state.phase == "running"
    assert running.state.services["worker"]["reason"] == "was killed by signal 9"
    await running.stop()
    assert running.state.services["worker"]["phase"] == "stopped"


async def test_the_pause_is_short_again_after_a_service_stayed_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = pauses_of(monkeypatch)
    running = Running(tmp_path, [service("worker")])
    await running.until_ready()
    await kill_and_wait(running, restarts=1)
    await kill_and_wait(running, restarts=2)
    monkeypatch.setattr(keep_running, "STEADY_S", 0.0)
    await kill_and_wait(running, restarts=3)
    assert pauses == [0.5, 1, 0.5]
    await running.stop()


async def kill_and_wait(running: Running, restarts: int) -> None:
    os.kill(running.state.services["worker"]["pid"], signal.SIGKILL)
    await until(holds(lambda: running.state.services["worker"]["restarts"] == restarts))
    await until(holds(lambda: running.state.services["worker"]["phase"] == "healthy"))


async def test_a_service_that_was_healthy_and_cannot_start_any_more_is_failed_and_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, trouble = pauses_of(monkeypatch), tmp_path / "trouble"
    running = Running(tmp_path, [service("steady"), service("worker", "--die-if", str(trouble))])
    await running.until_ready()
    trouble.touch()
    os.kill(running.state.services["worker"]["pid"], signal.SIGKILL)
    await until(holds(lambda: running.state.services["worker"]["phase"] == "failed"), 30)
    reason = running.state.services["worker"]["reason"]
    assert reason.startswith("5 starts in a row failed: it ended with exit code 1 (the disk is full)")
    await until(holds(lambda: len(pauses) >= 8), 30)
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 60, 60, 60]
    assert running.state.services["worker"]["phase"] == "failed"
    assert running.state.services["steady"]["phase"] == "healthy"
    trouble.unlink()
    await until(holds(lambda: running.state.services["worker"]["phase"] == "healthy"))
    await running.stop()


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Probes every 50 ms with a deadline of 300 ms; their answers."""
    answers: list[str] = []

    async def ask(address: str) -> str:
        answers.append(await probe.ask(address))
        return answers[-1]

    monkeypatch.setattr(probe, "PROBE_DEADLINE_S", 0.3)
    monkeypatch.setattr(watch_health, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(watch_health, "ask", ask)
    return answers


async def test_a_service_that_hangs_is_killed_and_started_again(tmp_path: Path, quick_probes: list[str]) -> None:
    running = Running(tmp_path, [service("worker", grace_s=0.1)])
    await running.until_ready()
    pid = running.state.services["worker"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    await until(holds(lambda: running.state.services["worker"]["restarts"] == 1), 20)
    await until(holds(lambda: running.state.services["worker"]["phase"] == "healthy"), 20)
    assert not birth(pid)
    assert running.state.services["worker"]["reason"].startswith("hung: no healthy answer for ")
    assert quick_probes.count("silent") >= watch_health.SILENT_PROBES
    await running.stop()


async def test_a_service_that_pauses_for_a_while_is_left_alone(tmp_path: Path, quick_probes: list[str]) -> None:
    running = Running(tmp_path, [service("worker")])
    await running.until_ready()
    pid = running.state.services["worker"]["pid"]
    for _ in range(2):  # silent for half as long as is borne, twice
        seen = len(quick_probes)
        os.kill(pid, signal.SIGSTOP)
        await until(holds(lambda seen=seen: quick_probes[seen:].count("silent") == watch_health.SILENT_PROBES // 2))
        os.kill(pid, signal.SIGCONT)
        await until(holds(lambda: quick_probes[-1] == "healthy"))
    assert running.state.services["worker"]["pid"] == pid
    assert running.state.services["worker"]["restarts"] == 0
    await running.stop()


async def test_a_redis_that_answers_with_an_error_does_not_hang(redis_url: str) -> None:
    assert await probe.ask(redis_url) == "healthy"
    assert await probe.ask(redis_url.replace("redis://:", "redis://:wrong")) == "unwell"
    assert await probe.ask(f"redis://127.0.0.1:{free_port()}/0") == "silent"


async def test_stopping_does_not_wait_for_a_service_that_is_to_be_started_later(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    running = Running(tmp_path, [service("worker", "--die-if", str(trouble))])
    await running.until_ready()
    trouble.touch()
    os.kill(running.state.services["worker"]["pid"], signal.SIGKILL)
    await until(holds(lambda: running.state.services["worker"]["restarts"] == 3), 20)  # the next start is 2 s away
    begun = time.monotonic()
    await running.stop()
    assert time.monotonic() - begun < 1
    assert running.state.services["worker"]["phase"] == "stopped"


async def test_a_service_that_ignores_sigterm_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    running = Running(tmp_path, [service("stubborn", "--ignore-term", "--with-child", str(child), grace_s=0.2)])
    await running.until_ready()
    pid = int(child.read_text())
    assert birth(pid)
    await running.stop()
    await until(holds(lambda: not birth(pid)))


async def test_services_end_when_the_supervisor_is_killed_and_the_next_start_waits_for_them(tmp_path: Path) -> None:
    port = free_port()
    program = f"""
import asyncio, sys
from pathlib import Path
from deploy.services import Service
from deploy.supervisor import Supervisor
from shared.deployment import Deployment, PathSettings
one = Service("one", (sys.executable, {str(FAKE)!r}, "{port}"), "http://127.0.0.1:{port}/healthz", ())
home = Path({str(tmp_path)!r})
supervisor = Supervisor(Deployment(paths=PathSettings(home=home)), home, [one], lambda condition: None)
asyncio.run(supervisor.run(asyncio.Event(), lambda: print("ready", flush=True)))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    state = read_state(tmp_path)
    assert state is not None
    assert state.alive
    process.kill()
    await process.wait()
    pid = state.services["one"]["pid"]
    await until(holds(lambda: not birth(pid)))
    assert not state.alive
    assert await stop_leftovers(tmp_path) == 0


async def test_leftovers_that_ignore_sigterm_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.stop_leftovers.GRACE_S", 0.2)
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, str(FAKE), str(port), "--ignore-term")
    await until(lambda: is_healthy(f"http://127.0.0.1:{port}/healthz"), 20)
    entry = {"phase": "healthy", "pid": process.pid, "born": birth(process.pid)}
    state = SupervisorState(0, "", 0.0, "", {}, services={"one": entry})
    (tmp_path / "supervisor.json").write_text(json.dumps({f: getattr(state, f) for f in SupervisorState.__slots__}))
    assert await stop_leftovers(tmp_path) == 1
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL


def test_a_second_supervisor_in_the_same_home_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with (
        only_one(tmp_path),
        pytest.raises(SluiceError, match=r"runs already in .*; stop it with `sluice down`"),
        only_one(tmp_path),
    ):
        pass
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_one(tmp_path))


def test_a_home_that_is_no_folder_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "home"):
        with pytest.raises(SluiceError, match=r"cannot be used \(.*\); set paths.home to a folder"), only_one(home):
            pass
        with pytest.raises(SluiceError, match=r"set paths.home to a folder"):
            read_state(home)


def test_a_start_that_is_refused_leaves_no_folder_behind(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with pytest.raises(SluiceError, match="taken"), only_one(home):
        raise SluiceError("port 1 is taken")
    assert [*tmp_path.iterdir()] == []


def test_a_start_that_is_refused_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "api_key").touch()
    (tmp_path / "empty").mkdir()
    for home in (tmp_path, tmp_path / "empty"):
        with pytest.raises(SluiceError), only_one(home):
            raise SluiceError("port 1 is taken")
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "supervisor.lock") == ["api_key", "empty"]
    assert [*(tmp_path / "empty").iterdir()] == []
