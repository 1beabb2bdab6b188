"""A sidecar's turns with a trainer, over a real Redis: when its engine has memory, and when it is ended for it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from benchmarks.free_ports import free_port
from services.rollout.engine import Sidecar
from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_life import Life
from services.rollout.engine_memory import TakeTurns
from services.rollout.engine_update import EngineUpdate
from services.trainer.ask_engines import AskEngines, MemoryNotFree, Patience
from services.trainer.step_ledger import StepLedger
from shared.await_redis import AwaitRedis
from shared.deployment import Deployment
from shared.errors import FencedOut, RunRejected, WireError
from shared.logs import Log
from shared.memory_parts import PRESENT, MemoryPart, read_memory_parts
from shared.runs import announce, present
from shared.service import Serving
from shared.tasks import end
from shared.topology import MEMORY, Keys
from tests.conftest import until
from tests.services.rollout.scripted_server import NAME, RUN, UPDATE, Server, following, true
from tests.services.trainer.recorded_groups import run_settings, serving, small_model, start_run

GIVE = ["/pause_generation", "/flush_cache", "/release_memory_occupation"]
PATIENCE = Patience(give_s=10, present_s=5, engines=1)


@dataclass
class OneLife:
    """An engine's process, as far as its memory is concerned."""

    calls: EngineCalls
    incarnation: str = "life-1"
    device: str = "cpu"
    ranks: int = 1
    shares_prefixes: bool = True

    async def watch(self) -> None:
        await asyncio.Event().wait()


@dataclass
class Process:
    """See Lives: notes when a process is launched and ended."""

    server: Server = field(default_factory=Server)
    url: str = "http://engine"
    slow: bool = False
    """It does not come up."""
    runs: bool = False
    launched: int = 0
    ended: int = 0

    async def start(self) -> Life:
        self.runs, self.launched = True, self.launched + 1
        if self.slow:
            await asyncio.Event().wait()
        return OneLife(EngineCalls(self.url, httpx.MockTransport(self.server.answer)))

    async def stop(self, grace_s: float = 0) -> None:
        assert grace_s == 0, "the trainer waits"
        self.ended += self.runs
        self.runs = False

    async def release(self) -> None: ...

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        return 0


@dataclass
class Turning:
    redis: Redis
    process: Process
    memory: TakeTurns
    update: EngineUpdate | None = None

    async def live(self, mode: str = "retract") -> None:
        """Begin the engine's next life, once it is its turn."""
        life = await self.memory.start()
        self.update = EngineUpdate(life.calls, mode, "cpu")
        self.memory.serves(self.update)

    async def part(self) -> MemoryPart | None:
        return (await read_memory_parts(self.redis, Keys(RUN))).get(NAME)


@contextlib.asynccontextmanager
async def sidecar(redis: Redis, process: Process | None = None) -> AsyncIterator[Turning]:
    process = process or Process()
    memory = TakeTurns(redis, RUN, NAME, process, Log("engine"))
    following = asyncio.create_task(memory.follow())
    try:
        yield Turning(redis, process, memory)
    finally:
        await end(following)


async def trainer(redis: Redis, patience: Patience = PATIENCE) -> AskEngines:
    """One that has taken the run over."""
    ledger, log = StepLedger(redis, RUN), Log("trainer")
    await ledger.take_over()
    return AskEngines(ledger, patience, AwaitRedis(log, RUN), log)


async def test_an_engine_is_launched_in_the_engines_turn_and_gives_its_memory_when_it_is_the_trainers(
    redis: Redis,
) -> None:
    async with sidecar(redis) as engine:
        asked, living = await trainer(redis), asyncio.create_task(engine.live())
        await asked.ask()
        assert (engine.process.launched, living.done()) == (0, False)
        await asked.give()
        await asyncio.wait_for(living, 5)
        for turn in range(2):
            await asked.ask()
            part, update = await engine.part(), engine.update
            assert part is not None and update is not None
            assert (part.state, update.gave_memory, update.mixed) == ("released", True, True)
            assert engine.process.server.calls == GIVE, turn  # one that was given already is not given again
            await asked.give()
        assert (engine.process.launched, engine.process.ended) == (1, 0)
    assert await present(redis, RUN, PRESENT) == []
    assert await redis.hgetall(Keys(RUN).memory_parts) == {}


async def test_a_process_that_does_not_give_its_memory_is_ended_and_starts_anew_when_it_is_its_turn(
    redis: Redis,
) -> None:
    async with sidecar(redis) as engine:
        asked = await trainer(redis)
        await asked.ask()
        await asked.give()
        await engine.live()
        engine.process.server.refuse["/release_memory_occupation"] = 1
        await asked.ask()
        part = await engine.part()
        assert part is not None
        assert (part.state, engine.process.ended) == ("none", 1)
        assert "/release_memory_occupation answered 400" in part.reason
        engine.memory.serves(None)  # as the sidecar says when it finds the process gone
        living = asyncio.create_task(engine.live())
        await asked.give()
        await asyncio.wait_for(living, 5)
        assert engine.process.launched == 2


async def test_a_process_that_hangs_is_ended_before_the_trainer_gives_up(redis: Redis) -> None:
    async with sidecar(redis) as engine:
        asked = await trainer(redis, Patience(give_s=1, present_s=1, engines=1))
        await asked.ask()
        await asked.give()
        await engine.live()
        asyncio.get_running_loop().call_later(0, engine.process.server.silent.add, "/pause_generation")
        await asked.ask()
        assert (engine.process.ended, engine.process.runs) == (1, False)


async def test_a_start_that_the_trainers_turn_comes_upon_is_given_up_and_begun_anew(redis: Redis) -> None:
    async with sidecar(redis, Process(slow=True)) as engine:
        asked, living = await trainer(redis), asyncio.create_task(engine.live())
        await asked.ask()
        await asked.give()
        await until(lambda: true(engine.process.launched == 1))
        await asked.ask()
        assert (engine.process.ended, engine.process.runs, living.done()) == (1, False, False)
        engine.process.slow = False
        await asked.give()
        await asyncio.wait_for(living, 5)
        assert engine.process.launched == 2


async def test_a_process_of_an_earlier_run_is_ended_before_the_trainer_loads_anything(redis: Redis) -> None:
    async with sidecar(redis, Process(runs=True)) as engine:
        await (await trainer(redis)).ask()
        assert (engine.process.ended, engine.process.runs) == (1, False)


async def test_a_trainer_waits_for_the_sidecar_that_joins_its_run_after_it(redis: Redis) -> None:
    asking = asyncio.create_task((await trainer(redis)).ask())
    async with sidecar(redis, Process(runs=True)) as engine:
        await asyncio.wait_for(asking, 5)
        assert not engine.process.runs


async def test_without_any_sidecar_the_trainer_goes_on(redis: Redis) -> None:
    await asyncio.wait_for((await trainer(redis, Patience(5, 0.1, 1))).ask(), 5)


async def test_a_sidecar_that_does_not_answer_is_named_with_what_to_do(redis: Redis) -> None:
    await announce(redis, RUN, f"{PRESENT}/{NAME}")
    with pytest.raises(MemoryNotFree, match=rf"had not given theirs away: {NAME}; look at their logs"):
        await (await trainer(redis, Patience(give_s=0.2, present_s=0, engines=1))).ask()


async def test_an_engine_that_gave_its_memory_takes_it_and_the_version_again_though_it_had_that(redis: Redis) -> None:
    """A trainer that was killed may offer the version that the engine proved before it gave its weights away."""
    async with following(redis) as engine:
        await engine.announce(1, "g1")
        await engine.go(1, "g1")
        await engine.reaches(1, "done")
        await engine.update.give_memory(time.time() + 5)
        begun = len(engine.server.calls)
        assert engine.server.calls[-3:] == GIVE
        await engine.announce(1, "again")
        await engine.go(1, "again", "g1")
        await until(lambda: true(engine.server.calls[-1] == "/continue_generation"))
        part = await engine.reaches(1, "done")
    update = [call for call in UPDATE[1:] if call != "/pause_generation"]  # it is paused, and stays in its group
    assert engine.server.calls[begun:] == ["/resume_memory_occupation", *update]
    assert "resume_memory" in part.seconds
    assert not (engine.update.gave_memory or engine.update.mixed)


async def test_requests_that_no_cache_can_be_flushed_around_end_with_what_they_have_before_the_memory_goes(
    redis: Redis,
) -> None:
    """SGLang before 0.5.20 keeps its cache while retracted requests wait, and would die if it were to release it."""
    async with following(redis, Server(refuse={"/flush_cache": 1})) as engine:
        await engine.update.give_memory(time.time() + 5)
    assert engine.server.calls == [GIVE[0], GIVE[1], "/abort_request", *GIVE[1:]]


async def test_an_engine_of_somebody_else_is_refused_in_a_run_with_turns(redis: Redis, tmp_path: Path) -> None:
    served = await turning_run(redis, tmp_path, engine={"urls": ["http://gpu-7:30000"]})
    with pytest.raises(RunRejected, match=r'http://gpu-7:30000 is somebody else\'s, .*or write memory = "kept"'):
        await Sidecar(1).serve(served)


async def test_a_sidecar_that_cannot_read_whose_turn_it_is_ends_and_waits_for_nothing(
    redis: Redis, tmp_path: Path
) -> None:
    served = await turning_run(redis, tmp_path, router={"port": free_port()})
    await redis.xadd(Keys(RUN).stream(MEMORY), {"m": b"what a newer release writes"})
    with pytest.raises(WireError):
        await asyncio.wait_for(Sidecar(0).serve(served), 10)


async def turning_run(redis: Redis, home: Path, **deployment: Any) -> Serving:
    """A run with turns, as a sidecar of this deployment is given it."""
    settings = run_settings(
        small_model(home / "model"), engine={"device": "cpu"}, weights={"transport": "ipc", "memory": "turns"}
    )
    served = serving(redis, await start_run(redis, settings), home)
    theirs = Deployment.model_validate({"paths": {"home": str(home)}, **deployment})
    return replace(served, place=replace(served.place, deployment=theirs))


async def test_a_killed_trainer_leaves_engines_that_the_next_one_finds_without_memory(redis: Redis) -> None:
    """The memory of the killed one is its system's to free; the engine waits, however long, with none."""
    async with sidecar(redis) as engine:
        killed = await trainer(redis)
        await killed.ask()
        await killed.give()
        await engine.live()
        await killed.ask()
        heir = await trainer(redis)
        with pytest.raises(FencedOut):
            await killed.give()
        await heir.ask()
        assert engine.process.server.calls == GIVE
        await heir.give()
