"""A trainer killed at any point ends with the weights, and leaves the ledger, of one that was not, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis

from services.trainer import checkpoint
from services.trainer.checkpoint import Checkpoints
from services.trainer.ledger_on_disk import LedgerOnDisk
from services.trainer.retention import Retention
from services.trainer.step_ledger import StepLedger
from shared.scripts import Ledger
from tests.services.trainer.bench import Bench, Killed, Outcome, kill_at, outcome
from tests.services.trainer.recorded_groups import NotedVersions, feed

STEPS, GROUPS = 5, 15
FILES, SYNCS = 3, 6
"""Of one checkpoint."""

KILLS: dict[str, tuple[Any, ...]] = {
    "before the first intent": (StepLedger, "intend", 1, False),
    "after the first intent": (StepLedger, "intend", 1, True),
    "after the first step, before its commit": (StepLedger, "commit", 1, False),
    "after the first commit": (StepLedger, "commit", 1, True),
    "before a later intent": (StepLedger, "intend", 4, False),
    "after a later intent": (StepLedger, "intend", 4, True),
    "after a later step, before its commit": (StepLedger, "commit", 4, False),
    "after a later commit, before the checkpoint": (StepLedger, "commit", 4, True),
    "while the checkpoint waits for the ledger": (LedgerOnDisk, "wait", 2, False),
    "with a checkpoint half written": (checkpoint, "save_file", FILES + 2, False),
    "with a checkpoint written and not in its place": (checkpoint, "_sync", 2 * SYNCS - 1, True),
    "with a checkpoint in its place, before older ones go": (checkpoint, "_sync", 3 * SYNCS, True),
    "between checkpoint and retention": (Retention, "forget", 2, False),
    "when some groups are forgotten": (Ledger, "forget", 1, True),
    "when groups are forgotten and their step is not counted": (Retention, "_trim", 1, True),
    "before a publication": (NotedVersions, "publish", 3, False),
    "after a publication": (NotedVersions, "publish", 3, True),
    "at the last checkpoint": (Checkpoints, "save", 3, False),
    "before the export": (Retention, "archive_rest", 1, False),
}
UNHURT: list[Outcome] = []


async def unhurt(redis: Redis, tmp_path: Path) -> Outcome:
    if not UNHURT:
        bench = Bench(redis, tmp_path / "unhurt", trainer={"steps": STEPS})
        await feed(redis, "r1", range(GROUPS))
        await bench.train()
        UNHURT.append(await outcome(bench))
        await redis.flushdb()
    return UNHURT[0]


@pytest.mark.parametrize("where", list(KILLS))
async def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    with monkeypatch.context() as patch:
        owner, name, call, after = KILLS[where]
        kill_at(patch, owner, name, call, after)
        with pytest.raises(Killed):
            await hurt.train()
    await hurt.train()
    assert await hurt.state() == "finished"
    found = await outcome(hurt)
    found.must_equal(expected)
    assert found.ledger["counters"]["trained"] == GROUPS
    assert found.ledger["undecided"] == {}


async def test_a_trainer_that_is_killed_at_every_second_intent_and_third_commit_ends_all_the_same(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    kills = 0
    while await _killed(hurt, monkeypatch):
        kills += 1
        assert kills < 20
    assert kills >= 2
    (await outcome(hurt)).must_equal(expected)


async def _killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        kill_at(patch, StepLedger, "commit", 3)
        kill_at(patch, StepLedger, "intend", 2, after=True)
        try:
            await bench.train()
        except Killed:
            return True
    return False


async def test_a_damaged_checkpoint_costs_time_and_no_group(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await unhurt(redis, tmp_path)
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": STEPS})
    await feed(redis, "r1", range(GROUPS))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, StepLedger, "intend", 5, after=True)
        await hurt.train()
    newest = hurt.folder / "checkpoints" / "step_000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\0\1\2\3")
    await hurt.train()
    (await outcome(hurt)).must_equal(expected)


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
