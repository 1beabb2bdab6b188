"""The trainer as a process: a run that it cannot serve fails with a sentence; SIGKILL changes nothing that it makes."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from benchmarks.free_ports import free_port
from services.trainer.serve_run import serve
from services.trainer.team import Team
from shared.runs import ENDED, Runs
from shared.scripts import Ledger
from shared.service import Place, follow_runs
from shared.topology import Keys
from tests.services.trainer.recorded_groups import feed, run_settings, serving, small_model, start_run


async def test_a_run_whose_model_is_missing_fails_with_one_sentence(redis: Redis, tmp_path: Path) -> None:
    record = await start_run(redis, run_settings(tmp_path / "nowhere"))
    place: Place = serving(redis, record, tmp_path).place
    follower = asyncio.create_task(follow_runs(place, "trainer", partial(serve, team=Team()), ("rl", "sft")))
    async with asyncio.timeout(20):
        while (ended := await Runs(redis).get("r1")) is None or ended.state not in ENDED:
            await asyncio.sleep(0.05)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert ended.state == "failed"
    assert ended.reason.startswith("trainer: model.path")
    assert ended.reason.endswith("is not a folder; give the folder of a Hugging Face checkpoint")


@contextlib.asynccontextmanager
async def trainer_process(redis_url: str, home: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environ = {
        "PATH": str(Path(sys.executable).parent),
        "SLUICE_REDIS__URL": redis_url,
        "SLUICE_PATHS__HOME": str(home),
        "SLUICE_HEALTH__TRAINER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.trainer", env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_step(redis: Redis, process: asyncio.subprocess.Process, step: int) -> None:
    async with asyncio.timeout(60):
        while (await Ledger(redis, Keys("r1")).counters()).get("step", 0) < step:
            assert process.returncode is None, "the trainer ended by itself"
            await asyncio.sleep(0.005)


async def until_finished(redis: Redis, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        while (record := await Runs(redis).get("r1")) is None or record.state != "finished":
            assert process.returncode is None, "the trainer ended by itself"
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_killed_process_exports_the_weights_of_one_that_was_not(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    settings = run_settings(small_model(tmp_path / "model"), "sft", trainer={"steps": 40, "checkpoint_every": 7})
    exports: list[dict[str, torch.Tensor]] = []
    for kills in ((), (23,)):
        home = tmp_path / f"killed_at_{kills}"
        await redis.flushdb()
        await start_run(redis, settings)
        await feed(redis, "r1", range(120), "sft")
        for step in kills:
            async with trainer_process(redis_url, home) as process:
                await until_step(redis, process, step)
                process.kill()
        async with trainer_process(redis_url, home) as process:
            await until_finished(redis, process)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0
        exports.append(load_file(home / "runs" / "r1" / "export" / "model.safetensors"))
        assert (await Ledger(redis, Keys("r1")).counters())["trained"] == 120
    assert exports[0].keys() == exports[1].keys()
    for name, tensor in exports[0].items():
        assert torch.equal(exports[1][name], tensor), name
