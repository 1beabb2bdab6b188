"""A run that goes back to an older version while it is live: its weights, groups and ledger, and what is refused."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.trainer.checkpoint import Checkpoints, Writing
from shared.messages import Event, StepIntent
from shared.rollback import Rollback, ask_rollback, read_rollback
from shared.runs import Runs
from shared.scripts import Ledger
from shared.streams import Stream
from shared.tasks import end
from shared.topology import EVENTS, Keys
from tests.conftest import until
from tests.services.trainer.bench import KEYS, Bench, checkpoint_folders, until_version
from tests.services.trainer.recorded_groups import feed
from tests.services.trainer.test_branch import Branches, equal, record_of
from tests.services.trainer.test_replay import recorded, replayed

STEPS = 8
RUN = {"trainer": {"steps": STEPS}}


@asynccontextmanager
async def training(bench: Bench) -> AsyncIterator["asyncio.Task[None]"]:
    """The trainer of a run whose first four steps are done: checkpoints at 2 and 4."""
    await feed(bench.redis, "r1", range(12), bench.settings.kind)
    task = asyncio.create_task(bench.train())
    try:
        await until_version(bench.redis, 4)
        yield task
    finally:
        await end(task)


async def answered(redis: Redis, version: int, keys: Keys = KEYS) -> Rollback:
    """What became of a rollback to a version."""
    await ask_rollback(redis, keys, version)

    async def is_over() -> bool:
        found = await read_rollback(redis, keys)
        return found is not None and found.state != "asked"

    await until(is_over, 30)
    found = await read_rollback(redis, keys)
    assert found is not None
    return found


async def shows(bench: Bench, *steps: int) -> bool:
    """Whether these are the steps of all checkpoints."""
    return checkpoint_folders(bench) == [f"step_{step:06d}" for step in steps]


async def events(redis: Redis, name: str) -> list[dict[str, Any]]:
    return [e.detail for _, e in await Stream[Event](redis, "r1", EVENTS).read(count=10_000) if e.event == name]


@pytest.mark.parametrize("version", [0, 1, 2, 3])
async def test_a_live_run_publishes_an_older_version_again_and_trains_on_from_it(
    redis: Redis, tmp_path: Path, version: int
) -> None:
    """From the initial model, by training step 1 again, from the checkpoint at 2, and from it by training step 3."""
    bench = Bench(redis, tmp_path, trainer={"steps": STEPS, "archive": True})
    async with training(bench) as task:
        assert await answered(redis, version) == Rollback(version, pytest.approx(0, abs=2e9), "recorded", 5)
        await until_version(redis, 5)
        first, second = (noted.published for noted in bench.noted)
        assert equal(second[5], first[version])
        assert not equal(second[5], first[4])
        await feed(redis, "r1", range(12, 21), version=5)
        await asyncio.wait_for(task, 60)
    assert await bench.state() == "finished"
    intents = [record for record in await bench.records() if isinstance(record, StepIntent)]
    assert [(i.step, i.weight_version, len(i.group_ids)) for i in intents] == [
        (1, 0, 3), (2, 1, 3), (3, 2, 3), (4, 3, 3), (5, version, 0), (6, 5, 3), (7, 6, 3), (8, 7, 3),
    ]  # fmt: skip
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["trained"], counters["rolled_back"], counters["weight_version"]) == (21, 3, STEPS)
    assert await events(redis, "rolled_back") == [{"version": version, "step": 5}]
    assert not await events(redis, "trainer_rewound")
    assert not any(counter.startswith("failures") for counter in counters)


async def test_groups_that_were_sampled_before_the_rollback_are_dropped_and_give_their_slots_back(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, **RUN)
    async with training(bench) as task:
        await feed(redis, "r1", [12, 13], version=4)
        await answered(redis, 3)
        await until_version(redis, 5)
        await feed(redis, "r1", [14], version=4)  # its tokens were under way all the while
        await feed(redis, "r1", range(15, 24), version=5)
        await asyncio.wait_for(task, 60)
    dropped = await events(redis, "dropped")
    assert [(d["group"], d["reason"]) for d in dropped] == [
        (12, "rolled_back"),
        (13, "rolled_back"),
        (14, "rolled_back"),
    ]
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["dropped"], counters["dropped:rolled_back"], counters["trained"]) == (3, 3, 21)


async def test_what_was_left_behind_can_be_gone_forward_to_as_long_as_it_is_kept(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, **RUN)
    async with training(bench) as task:
        await answered(redis, 3)
        await until_version(redis, 5)
        assert (await answered(redis, 4)).state == "recorded"
        await until_version(redis, 6)
        first, second, third = (noted.published for noted in bench.noted)
        assert equal(third[6], first[4])
        assert not equal(second[5], third[6])
        await feed(redis, "r1", range(12, 18), version=6)
        await asyncio.wait_for(task, 60)
    assert (await Ledger(redis, KEYS).counters())["rolled_back"] == 6


async def test_checkpoints_that_were_left_behind_go_once_enough_newer_ones_are_there(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 10})
    async with training(bench) as task:
        await until(lambda: shows(bench, 2, 4), 30)
        await answered(redis, 3)
        await until_version(redis, 5)
        # two of those that the present state comes from, and all that is newer than these
        await until(lambda: shows(bench, 2, 4, 5), 30)
        await feed(redis, "r1", range(12, 27), version=5)
        await asyncio.wait_for(task, 60)
    assert await shows(bench, 8, 10)
    left = [group for group in range(27) if await redis.exists(KEYS.group(group))]
    assert left == list(range(21, 27))


async def test_a_version_that_is_gone_is_refused_with_those_that_are_there_and_the_run_goes_on(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 6})
    async with training(bench) as task:
        refused = await answered(redis, 1)
        assert (refused.state, refused.step) == ("refused", None)
        assert "version 1 cannot be had any more" in refused.reason
        assert "those that can be had: 0, 2 to 4" in refused.reason
        assert "goes on from anyway" in (await answered(redis, 4)).reason
        await feed(redis, "r1", range(12, 18), version=4)
        await asyncio.wait_for(task, 60)
    assert len(await events(redis, "rollback_refused")) == 2
    assert (await Ledger(redis, KEYS).counters()).get("rolled_back", 0) == 0
    assert len(bench.noted) == 1


async def test_a_damaged_checkpoint_is_no_version_and_an_older_one_stands_in_for_it(
    redis: Redis, tmp_path: Path
) -> None:
    bench = Bench(redis, tmp_path, **RUN)
    async with training(bench):
        folder = bench.folder / "checkpoints" / "step_000004"
        await until(lambda: shows(bench, 2, 4), 30)
        (folder / "__0_0.distcp").write_bytes(b"damaged")
        await feed(redis, "r1", range(12, 15), version=4)
        await until_version(redis, 5)
        assert (await answered(redis, 4)).step == 6  # by training steps 3 and 4 again
        await until_version(redis, 6)
        first, second = (noted.published for noted in bench.noted)
        assert equal(second[6], first[4])
        shutil.rmtree(bench.folder / "checkpoints" / "step_000002")
        assert "can be had: 0, 4 to 6" in (await answered(redis, 3)).reason


async def test_the_checkpoint_that_is_under_way_does_not_take_away_the_one_that_is_wanted(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one checkpoint kept, that of step 4 ends the one of step 2 in the moment in which it is whole."""
    finish, asked = Checkpoints.finish, asyncio.Event()
    loop = asyncio.get_running_loop()

    def late(checkpoints: Checkpoints, writing: Writing) -> None:
        if writing.step == 4:
            asyncio.run_coroutine_threadsafe(asyncio.wait_for(asked.wait(), 20), loop).result()
        finish(checkpoints, writing)

    monkeypatch.setattr(Checkpoints, "finish", late)
    bench = Bench(redis, tmp_path, trainer={"steps": STEPS, "keep_checkpoints": 1})
    async with training(bench):
        await ask_rollback(redis, KEYS, 3)
        asked.set()
        refused = await answered(redis, 3)
    assert (refused.state, "can be had: 0, 4" in refused.reason) == ("refused", True)


async def test_a_run_without_engines_goes_back_too_and_its_rows_go_on(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, kind="sft", **RUN)
    async with training(bench) as task:
        await answered(redis, 2)
        await until_version(redis, 5)
        await feed(redis, "r1", range(12, 21), "sft")
        await asyncio.wait_for(task, 60)
    counters = await Ledger(redis, KEYS).counters()
    assert (counters["trained"], counters.get("dropped", 0), counters["step"]) == (21, 0, STEPS)
    assert [one.equal for one in await replayed(redis, tmp_path, 7, 8)] == [True] * 2


async def test_a_branch_goes_back_as_far_as_its_own_checkpoints_reach(redis: Redis, tmp_path: Path) -> None:
    """Its first one is of the step that it begins with; before that are its parent's versions."""
    parent, branches = await recorded(redis, tmp_path), Branches(redis, tmp_path)
    record = await branches.begin(parent, "b", 2, {"trainer": {"steps": 6}})
    keys = Keys("b")
    task = asyncio.create_task(branches.train(record, range(6, 12)))
    try:
        await until(lambda: has_served(redis, keys, 4), 30)
        assert "can be had: 2 to 4" in (await answered(redis, 1, keys)).reason
        assert (await answered(redis, 2, keys)).step == 5
        await until(lambda: has_served(redis, keys, 5), 30)
        await feed(redis, "b", range(12, 15), version=5)
        await asyncio.wait_for(task, 60)
    finally:
        await end(task)
    assert (await record_of(redis, "b")).state == "finished"


async def has_served(redis: Redis, keys: Keys, version: int) -> bool:
    return (await Ledger(redis, keys).counters()).get("weight_version", -1) >= version


async def test_a_run_that_is_to_stop_stops_though_a_rollback_is_asked_for(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, **RUN)
    async with training(bench) as task:
        await ask_rollback(redis, KEYS, 3)
        await Runs(redis).move("r1", ("running",), "stopping")
        await asyncio.wait_for(task, 60)
    assert await bench.state() == "stopped"


async def test_the_evaluation_of_the_version_that_is_left_is_not_waited_for(redis: Redis, tmp_path: Path) -> None:
    held_out = {"datasets": ["held_out"], "every": 4, "deadline_s": 60}
    bench, tally = Bench(redis, tmp_path, eval=held_out, **RUN), {"held_out|groups": 1, "held_out|done": 1}
    fields: dict[Any, Any] = tally
    await redis.hset(KEYS.evaluation(0), mapping=fields)
    async with training(bench):
        await answered(redis, 2)  # version 4 is to be evaluated, and nobody does
        await until_version(redis, 5)


async def test_steps_behind_a_rollback_come_out_as_recorded_and_a_run_can_branch_from_them(
    redis: Redis, tmp_path: Path
) -> None:
    """Also where Redis and the checkpoints are gone, and the archive alone tells which way the weights took."""
    bench = Bench(redis, tmp_path, trainer={"steps": STEPS, "archive": True})
    async with training(bench) as task:
        await answered(redis, 3)
        await until_version(redis, 5)
        await feed(redis, "r1", range(12, 21), version=5)
        await asyncio.wait_for(task, 60)
    found = await replayed(redis, tmp_path, 1, None)
    assert [(one.step, one.source, one.equal) for one in found] == [
        (step, "rollback" if step == 5 else "archive", True) for step in range(1, 9)
    ]
    assert (found[4].metrics, found[4].weights) == ({}, [])
    assert [check.against for check in found[7].weights] == ["checkpoint"]
    assert [one.equal for one in await replayed(redis, tmp_path, 6, 8)] == [True] * 3

    branches = Branches(redis, tmp_path)
    record = await branches.begin(bench.settings, "b", 6)
    await branches.train(record, range(15, 21))
    assert equal(branches.weights(record, 8), branches.weights(await record_of(redis, "r1"), 8))

    shutil.rmtree(tmp_path / "runs" / "r1" / "checkpoints" / "step_000006")
    (before,) = await replayed(None, tmp_path, 8, 8)
    assert (before.equal, before.weights[0].against) == (True, "checkpoint")
    (rolled_back,) = await replayed(None, tmp_path, 5, 5)
    assert rolled_back.equal
