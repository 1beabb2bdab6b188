"""Recorded steps, trained again: equal bit for bit, different where a setting is, and a sentence for what is gone."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from redis.asyncio import Redis

from services.trainer.archive import step_file
from services.trainer.reach_step import Recordings
from services.trainer.recorded_run import find_run
from services.trainer.replay_steps import StepComparison, changed_settings, replay
from services.trainer.serve_run import train_run
from shared.errors import RunRejected, SettingsError
from shared.logs import Log
from shared.messages import Codec, Rollout
from shared.rollout_parts import arrays_of, encoded_whole
from shared.run_settings import RunSettings
from shared.settings import Tree
from shared.topology import Keys
from tests.services.trainer.recorded_groups import (
    NotedVersions,
    feed,
    run_settings,
    serving,
    small_model,
    start_run,
)


async def recorded(redis: Redis, home: Path, **sections: Any) -> RunSettings:
    """A run of four steps that was trained to its end, with checkpoints at 2 and 4."""
    settings = run_settings(small_model(home / "model"), **sections)
    record = await start_run(redis, settings)
    await feed(redis, "r1", range(12), settings.kind)
    await train_run(serving(redis, record, home), NotedVersions)
    return settings


async def replayed(
    redis: Redis | None, home: Path, first: int, last: int | None, changes: Tree | None = None
) -> list[StepComparison]:
    recordings = Recordings(redis, home / "runs", Log("replay"))
    run = await recordings.find("r1")
    settings = changed_settings(run, changes or {})
    return [comparison async for comparison in replay(recordings, run, first, last, settings)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def keys_of(redis: Redis) -> dict[bytes, Any]:
    return {key: await redis.dump(key) for key in await redis.keys("*")}


async def test_every_step_comes_out_as_it_was_recorded_and_nothing_is_written(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path, trainer={"archive": True})
    before = files(tmp_path), await keys_of(redis)
    found = await replayed(redis, tmp_path, 1, None)
    assert [(one.step, one.differs, one.equal) for one in found] == [(n, [], True) for n in (1, 2, 3, 4)]
    assert all(one.metrics["loss"][0] == one.metrics["loss"][1] for one in found)
    assert [[check.against for check in one.weights] for one in found] == [[], ["checkpoint"], [], ["checkpoint"]]
    assert found[1].weights[0].tensors > 40
    assert (files(tmp_path), await keys_of(redis)) == before


async def test_archive_and_checkpoints_are_enough_when_redis_is_gone(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path, trainer={"archive": True})
    found = await replayed(None, tmp_path, 2, 4)
    assert [(one.step, one.source, one.equal) for one in found] == [(n, "archive", True) for n in (2, 3, 4)]


async def test_without_an_archive_the_steps_after_the_oldest_checkpoint_can_be_replayed(
    redis: Redis, tmp_path: Path
) -> None:
    await recorded(redis, tmp_path)
    found = await replayed(redis, tmp_path, 3, 4)
    assert [(one.step, one.source, one.equal) for one in found] == [(3, "redis", True), (4, "redis", True)]
    with pytest.raises(RunRejected, match=r"step 1 of run r1 trained 3 groups, of which Redis keeps 0.*archive = true"):
        await replayed(redis, tmp_path, 2, 4)


async def test_another_learning_rate_acts_from_the_first_step_on_and_the_difference_is_told(
    redis: Redis, tmp_path: Path
) -> None:
    await recorded(redis, tmp_path, trainer={"archive": True})
    found = await replayed(redis, tmp_path, 2, 4, {"trainer": {"learning_rate": 2e-3}})
    assert found[0].differs == ["learning_rate"]  # the loss of the step is computed before the weights move
    assert found[0].metrics["learning_rate"] == (1e-3, 2e-3)
    assert not found[0].weights[0].equal
    assert 0 < found[0].weights[0].largest_difference < 0.1
    assert "loss" in found[1].differs
    same = await replayed(redis, tmp_path, 2, 4, {"trainer": {"learning_rate": 1e-3}})
    assert all(one.equal for one in same)


async def test_an_sft_run_is_replayed_too(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path, kind="sft")
    assert all(one.equal for one in await replayed(redis, tmp_path, 3, 4))


async def test_a_damaged_archive_is_named_and_a_changed_one_differs(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path, trainer={"archive": True})
    path = step_file(tmp_path / "runs" / "r1", 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(RunRejected, match=r"step_000003.msgpack.zst is damaged"):
        await replayed(redis, tmp_path, 3, 4)
    content = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(whole))
    content["payloads"][0][0] = _with_other_tokens(content["payloads"][0][0])
    path.write_bytes(zstandard.ZstdCompressor().compress(msgpack.packb(content)))
    assert "kl" in (await replayed(redis, tmp_path, 3, 3))[0].differs


async def test_a_tampered_payload_in_redis_differs_and_an_undecodable_one_is_named(
    redis: Redis, tmp_path: Path
) -> None:
    await recorded(redis, tmp_path)
    group, arrays = Keys("r1").group(7), Keys("r1").arrays(7)
    attempt, data = await redis.hget(group, "1"), await redis.hget(arrays, "1")
    assert attempt is not None
    assert data is not None
    changed = Codec(Rollout).decode(_with_other_tokens(encoded_whole(attempt, data)))  # pyright: ignore
    await redis.hset(arrays, "1", arrays_of(changed))  # pyright: ignore
    assert "kl" in (await replayed(redis, tmp_path, 3, 3))[0].differs
    await redis.hset(group, "1", b"nothing of the kind")  # pyright: ignore
    with pytest.raises(RunRejected, match="group 7 cannot be trained"):
        await replayed(redis, tmp_path, 3, 3)


async def test_a_damaged_checkpoint_in_the_range_is_named_and_left_where_it_is(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path, trainer={"archive": True})
    folder = tmp_path / "runs" / "r1" / "checkpoints" / "step_000002"
    with (folder / "__0_0.distcp").open("r+b") as file:
        file.seek(3000)
        file.write(b"\0\1\2\3")
    with pytest.raises(RunRejected, match="checkpoint of run r1 at step 2 is unusable"):
        await replayed(redis, tmp_path, 1, 2)
    assert all(one.equal for one in await replayed(redis, tmp_path, 3, 4))  # from the initial model
    assert folder.is_dir()


async def test_what_cannot_be_replayed_is_refused_with_what_to_write(redis: Redis, tmp_path: Path) -> None:
    await recorded(redis, tmp_path)
    for first, last, sentence in ((3, 5, "replay up to step 4"), (0, 2, "count from 1"), (4, 3, "count from 1")):
        with pytest.raises(RunRejected, match=sentence):
            await replayed(redis, tmp_path, first, last)
    for changes in ({"rollout": {"group_size": 2}}, {"trainer": {"archive": True}}):
        with pytest.raises(SettingsError, match=r"changes nothing about training a recorded step"):
            await replayed(redis, tmp_path, 3, 4, changes)
    with pytest.raises(SettingsError, match=r"did you mean trainer.learning_rate"):
        await replayed(redis, tmp_path, 3, 4, {"trainer": {"learning_rat": 1}})
    with pytest.raises(RunRejected, match=r"run r2 is neither in Redis nor in .*runs/r2/run.json; .*r1"):
        await find_run(redis, tmp_path / "runs", "r2")


@pytest.mark.slow
async def test_the_process_writes_a_line_for_each_step_and_its_exit_code_is_the_verdict(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    await recorded(redis, tmp_path)

    async def process(*arguments: str, url: str = redis_url) -> tuple[int | None, list[dict[str, Any]]]:
        environ = {
            "PATH": str(Path(sys.executable).parent),
            "SLUICE_REDIS__URL": url,
            "SLUICE_PATHS__HOME": str(tmp_path),
        }
        command = (sys.executable, "-m", "services.trainer.replay", "r1", *arguments)
        child = await asyncio.create_subprocess_exec(
            *command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        return child.returncode, [json.loads(line) for line in out.decode().splitlines()]

    code, lines = await process("--from", "3", "--to", "4")
    assert code == 0
    assert [(line["type"], line.get("step"), line["equal"]) for line in lines] == [
        ("step", 3, True),
        ("step", 4, True),
        ("verdict", None, True),
    ]
    code, lines = await process("--from", "3", url="redis://127.0.0.1:1/0")
    assert (code, lines[-1]["type"]) == (2, "error")
    assert "recorded 0 steps" in lines[-1]["message"]


def _with_other_tokens(payload: bytes) -> bytes:
    codec: Codec[Rollout] = Codec(Rollout)
    rollout = codec.decode(payload)
    changed = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
    changed["token_ids"] = (np.asarray(rollout.token_ids) + 1).astype(np.int32)
    return codec.encode(Rollout(**changed))
