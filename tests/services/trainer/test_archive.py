"""The archive: every step as it was trained, before its groups leave Redis; and instead of them if they are gone."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.trainer.archive import ArchivedStep, is_archived, open_archive, read_step, step_file, write_step
from services.trainer.retention import Retention
from shared.errors import RunRejected
from shared.messages import Codec, Rollout, StepIntent
from tests.services.trainer.bench import KEYS, Bench, Killed, kill_at, outcome
from tests.services.trainer.recorded_groups import feed, rollouts

STEP = ArchivedStep(StepIntent(12, [7, 3], 11, 99), {"loss": 0.25}, [[b"a", b"b"], [b"c"]])


def test_a_step_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = write_step(tmp_path, STEP)
    assert path == tmp_path / "archive" / "step_000012.msgpack.zst"
    assert read_step(tmp_path, 12) == STEP
    assert read_step(tmp_path, 13) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = write_step(tmp_path, STEP)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunRejected, match=r"step_000012\.msgpack\.zst is damaged"):
        read_step(tmp_path, 12)


def test_the_archive_of_an_earlier_run_of_the_same_name_is_set_aside(tmp_path: Path) -> None:
    open_archive(tmp_path, "first")
    write_step(tmp_path, STEP)
    open_archive(tmp_path, "first")
    assert read_step(tmp_path, 12) == STEP
    open_archive(tmp_path, "second")
    assert read_step(tmp_path, 12) is None
    assert (tmp_path / "archive_first" / step_file(tmp_path, 12).name).exists()


async def test_every_step_of_a_run_is_archived_with_its_metrics_and_payloads(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 5, "archive": True})
    await feed(redis, "r1", range(15))
    await bench.train()
    assert [is_archived(bench.folder, step) for step in range(1, 7)] == [True] * 5 + [False]
    commits = {record[0]: record[1] for record in (await outcome(bench)).records if isinstance(record, tuple)}
    codec: Codec[Rollout] = Codec(Rollout)
    for step in range(1, 6):
        archived = read_step(bench.folder, step)
        assert archived is not None
        assert archived.metrics["loss"] == commits[step]["loss"]
        expected = [[codec.encode(rollout) for rollout in rollouts(group)] for group in archived.intent.group_ids]
        assert archived.payloads == expected
    assert not await redis.exists(KEYS.group(0))


async def test_without_the_setting_nothing_is_archived(redis: Redis, tmp_path: Path) -> None:
    bench = Bench(redis, tmp_path, trainer={"steps": 2})
    await feed(redis, "r1", range(6))
    await bench.train()
    assert read_step(bench.folder, 1) is None


async def test_with_an_archive_a_run_survives_the_loss_of_all_checkpoints(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurt = Bench(redis, tmp_path / "unhurt", trainer={"steps": 5, "archive": True})
    await feed(redis, "r1", range(15))
    await unhurt.train()
    expected = await outcome(unhurt)
    await redis.flushdb()
    hurt = Bench(redis, tmp_path / "hurt", trainer={"steps": 5, "archive": True})
    await feed(redis, "r1", range(15))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, Retention, "archive_rest")
        await hurt.train()
    (hurt.folder / "checkpoints").rename(tmp_path / "lost")
    await hurt.train()
    (await outcome(hurt)).must_equal(expected)
