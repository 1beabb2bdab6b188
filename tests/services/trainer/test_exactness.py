"""A trainer killed at any point ends with the weights, and leaves the ledger, of one that was not, bit for bit."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis

from services.trainer.checkpoint import MANIFEST
from services.trainer.step_ledger import StepLedger
from tests.services.trainer.bench import Bench, Killed, Outcome, checkpoint_folders, kill_at, outcome
from tests.services.trainer.kill_points import (
    COMMIT,
    FORGET,
    INTEND,
    OF_A_CHECKPOINT,
    OF_FORGETTING,
    OF_STEPS,
    SYNC,
    WRITE_ITEM,
)
from tests.services.trainer.killed_trainer import Hold, Point, exit_code, train_until_killed
from tests.services.trainer.recorded_groups import feed

STEPS, GROUPS = 5, 15
RUN = {"trainer": {"steps": STEPS}}
UNHURT: list[Outcome] = []


async def unhurt(redis: Redis, tmp_path: Path) -> Outcome:
    if not UNHURT:
        bench = Bench(redis, tmp_path / "unhurt", **RUN)
        await feed(redis, "r1", range(GROUPS))
        await bench.train()
        UNHURT.append(await outcome(bench))
        assert UNHURT[0].checkpoints == ["step_000004", "step_000005"]
        await redis.flushdb()
    return UNHURT[0]


async def fed(redis: Redis, tmp_path: Path) -> Bench:
    """The same run again, not begun."""
    await feed(redis, "r1", range(GROUPS))
    return Bench(redis, tmp_path / "hurt", **RUN)


async def ends_like(hurt: Bench, expected: Outcome) -> None:
    await hurt.train()
    assert await hurt.state() == "finished"
    found = await outcome(hurt)
    found.must_equal(expected)
    assert found.ledger["counters"]["trained"] == GROUPS
    assert found.ledger["undecided"] == {}


@pytest.mark.parametrize("where", [*OF_STEPS])
async def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(
    redis: Redis, redis_url: str, tmp_path: Path, where: str
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    await train_until_killed(redis_url, hurt.home, [OF_STEPS[where]], **RUN)
    await ends_like(hurt, expected)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["first", "second", "last"])
@pytest.mark.parametrize("where", [*OF_A_CHECKPOINT])
async def test_one_that_is_killed_with_a_checkpoint_at_any_point_ends_the_same(
    redis: Redis, redis_url: str, tmp_path: Path, where: str, number: int
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    point, name = OF_A_CHECKPOINT[where]
    await train_until_killed(redis_url, hurt.home, [replace(point, checkpoint=number)], **RUN)
    assert name.format(f"00000{(2, 4, 5)[number - 1]}") in checkpoint_folders(hurt)
    await ends_like(hurt, expected)


LATER = {
    "before the next intent": lambda step: Point(INTEND, step + 1),
    "after the next commit": lambda step: Point(COMMIT, step + 1, after=True),
}


@pytest.mark.parametrize("later", [*LATER])
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("where", [*OF_A_CHECKPOINT])
async def test_one_that_is_killed_in_the_next_step_while_a_checkpoint_is_under_way_ends_the_same(
    redis: Redis, redis_url: str, tmp_path: Path, where: str, step: int, later: str
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    point, name = OF_A_CHECKPOINT[where]
    hold = Hold(replace(point, checkpoint=step // 2))
    await train_until_killed(redis_url, hurt.home, [LATER[later](step)], hold, **RUN)
    before = ["step_000002"] if step == 4 else []
    assert checkpoint_folders(hurt) == sorted([*before, name.format(f"00000{step}")])
    await ends_like(hurt, expected)


@pytest.mark.parametrize("step", [2, 4])
async def test_a_checkpoint_that_was_written_after_the_next_step_holds_what_was_before_it(
    redis: Redis, redis_url: str, tmp_path: Path, step: int
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    late = Hold(Point(WRITE_ITEM, checkpoint=step // 2), until=Point(COMMIT, step + 1, after=True))
    await train_until_killed(redis_url, hurt.home, [Point(SYNC, 3, after=True, checkpoint=step // 2)], late, **RUN)
    assert checkpoint_folders(hurt)[-1] == f"step_00000{step}"
    await ends_like(hurt, expected)


@pytest.mark.parametrize("later", [None, *LATER])
@pytest.mark.parametrize("where", [*OF_FORGETTING])
async def test_one_that_is_killed_while_groups_leave_redis_ends_the_same(
    redis: Redis, redis_url: str, tmp_path: Path, where: str, later: str | None
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    point = replace(OF_FORGETTING[where], checkpoint=2)
    kill, hold = (LATER[later](4), Hold(point)) if later else (point, None)
    await train_until_killed(redis_url, hurt.home, [kill], hold, **RUN)
    assert checkpoint_folders(hurt)[:2] == ["step_000002", "step_000004"]
    await ends_like(hurt, expected)


RUNS = {
    "ppo with a moving reference": {
        "advantage": {"estimator": "ppo"},
        "kl": {"reward_coef": 0.1, "refresh_every": 3},
        "updates_per_step": 3,
        "epochs": 2,
    },
    "masters in float32": {"weight_decay": 0.1},
}
PARTS = {
    "ppo with a moving reference": {
        "weights",
        "optimizer",
        "critic_weights",
        "critic_optimizer",
        "reference",
        "export",
    },
    "masters in float32": {"weights", "optimizer", "export"},
}


@pytest.mark.parametrize("kind", [*RUNS])
async def test_all_models_of_a_run_are_those_of_one_that_was_not_killed(
    redis: Redis, redis_url: str, tmp_path: Path, kind: str
) -> None:
    dtype = "bfloat16" if kind == "masters in float32" else "float32"
    run = {"trainer": {"steps": STEPS, **RUNS[kind]}, "model": {"dtype": dtype}}
    await feed(redis, "r1", range(GROUPS))
    whole = Bench(redis, tmp_path / "unhurt", **run)
    await whole.train()
    expected = await outcome(whole)
    assert {name.partition("/")[0] for name in expected.tensors} == PARTS[kind]
    await redis.flushdb()
    await feed(redis, "r1", range(GROUPS))
    hurt = Bench(redis, tmp_path / "hurt", **run)
    late = Hold(Point(WRITE_ITEM, checkpoint=2), until=Point(COMMIT, 5, after=True))
    await train_until_killed(redis_url, hurt.home, [Point(SYNC, 3, after=True, checkpoint=2)], late, **run)
    await ends_like(hurt, expected)


async def test_a_trainer_that_is_killed_at_every_second_intent_and_third_commit_ends_all_the_same(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """With a checkpoint after every step: each one waits for the one before, so that every life brings the run on."""
    expected = await unhurt(redis, tmp_path)
    await feed(redis, "r1", range(GROUPS))
    run = {"trainer": {"steps": STEPS, "checkpoint_every": 1}}
    hurt, kills = Bench(redis, tmp_path / "hurt", **run), 0
    while code := await exit_code(redis_url, hurt.home, [Point(COMMIT, 3), Point(INTEND, 2, after=True)], **run):
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 20
    assert kills >= 2
    (await outcome(hurt)).must_equal(expected)


def flip_a_bit(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def lose_the_index(folder: Path) -> None:
    (folder / ".metadata").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, lose_the_index, lose_the_manifest])
async def test_a_damaged_checkpoint_costs_time_and_no_group(
    redis: Redis, redis_url: str, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = await fed(redis, tmp_path)
    kill, forgotten = Point(INTEND, 5, after=True), Point(FORGET, checkpoint=2, after=True)
    await train_until_killed(redis_url, hurt.home, [kill], Hold(forgotten), **RUN)
    damage(hurt.folder / "checkpoints" / "step_000004")
    await ends_like(hurt, expected)
    assert (hurt.folder / "checkpoints" / "damaged_step_000004").is_dir()


async def test_a_resumed_trainer_tells_engines_nothing_older_than_they_know(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 5, "checkpoint_every": 50})
    kill_at(monkeypatch, StepLedger, "intend", 5, after=True)
    await feed(redis, "r1", range(15))
    with pytest.raises(Killed):
        await bench.train()
    first = bench.noted[0].published
    await bench.train()
    assert sorted(bench.noted[1].published) == list(range(max(first), 6))
    for name, tensor in first[max(first)].items():
        assert torch.equal(bench.noted[1].published[max(first)][name], tensor)
