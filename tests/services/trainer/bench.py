"""One run under training in this process, a way to end its trainer at any point, and what must be the same after."""

import asyncio
import inspect
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.trainer.checkpoint import Checkpoints
from services.trainer.recorded_run import owner_of
from services.trainer.serve_run import train_run
from services.trainer.step_ledger import StepLedger
from shared.accounts import undecided
from shared.logs import Log
from shared.messages import StepCommit, StepIntent
from shared.runs import Runs
from shared.scripts import Ledger
from shared.service import Serving
from shared.streams import Stream
from shared.topology import STEPS, Keys
from tests.services.trainer.recorded_groups import (
    NotedVersions,
    run_settings,
    serving,
    small_model,
    start_run,
)

KEYS = Keys("r1")


class Bench:
    """One run under training, and the publisher that it opened."""

    def __init__(self, redis: Redis, tmp_path: Path, **sections: Any) -> None:
        self.redis, self.home = redis, tmp_path
        self.settings = run_settings(small_model(tmp_path / "model"), **sections)
        self.noted: list[NotedVersions] = []

    async def train(self) -> None:
        record = await Runs(self.redis).get("r1") or await start_run(self.redis, self.settings)
        await train_run(serving(self.redis, record, self.home), self._open)

    def _open(self, serving: Serving, ledger: StepLedger) -> NotedVersions:
        self.noted.append(NotedVersions(serving, ledger))
        return self.noted[-1]

    async def records(self) -> list[Any]:
        return [record for _, record in await Stream[Any](self.redis, "r1", STEPS).read()]

    async def state(self) -> str:
        record = await Runs(self.redis).get("r1")
        assert record is not None
        return record.state

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "r1"


async def until_version(redis: Redis, version: int) -> None:
    async with asyncio.timeout(20):
        while (await Ledger(redis, KEYS).counters()).get("weight_version", -1) < version:
            await asyncio.sleep(0.01)


class Killed(BaseException):
    """The trainer ends at this point, in a process that goes on; see killed_trainer for one that does not."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1, after: bool = False) -> None:
    """End the trainer before (or right after) the n-th call of a function, once."""
    original, calls = getattr(owner, name), count(1)

    def dies() -> bool:
        return next(calls) == call

    async def dying_async(*args: Any, **kwargs: Any) -> Any:
        dead = dies()
        result = None if dead and not after else await original(*args, **kwargs)
        if dead:
            raise Killed
        return result

    def dying(*args: Any, **kwargs: Any) -> Any:
        dead = dies()
        result = None if dead and not after else original(*args, **kwargs)
        if dead:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying_async if inspect.iscoroutinefunction(original) else dying)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind."""

    tensors: dict[str, torch.Tensor]
    """Weights and optimizer of every model of the newest checkpoint, and the exported weights, by part and name."""
    checkpoints: list[str]
    """Names of what is in their folder, but for what was set aside."""
    records: list[Any]
    ledger: dict[str, Any]
    """Counters, accounts, bitmaps, and the groups that are still in Redis."""

    def must_equal(self, other: "Outcome") -> None:
        assert self.checkpoints == other.checkpoints
        assert self.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            assert torch.equal(self.tensors[name], tensor), name
        assert self.records == other.records
        assert self.ledger == other.ledger


async def outcome(bench: Bench) -> Outcome:
    record = await Runs(bench.redis).get("r1")
    assert record is not None
    kept = Checkpoints(bench.folder / "checkpoints", owner_of(record), 2, Log("trainer"))
    state = kept.read(kept.steps()[-1]).state()
    parts = {part: tensors for part, tensors in state.items() if "random" not in part}
    assert parts.keys() >= {"weights", "optimizer"}
    parts["export"] = load_file(bench.folder / "export" / "model.safetensors")
    tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    redis = bench.redis
    ledger: dict[str, Any] = {
        "counters": await Ledger(redis, KEYS).counters(),
        "accounts": {name: int(tokens) for name, tokens in (await redis.hgetall(KEYS.accounts)).items()},
        "bitmaps": [await redis.get(key) for key in (KEYS.trained, KEYS.emitted, KEYS.dropped, KEYS.evaluated)],
        "groups": sorted(await redis.keys(KEYS.group(0).removesuffix("0").replace("{", "[{]") + "*")),
        "undecided": undecided({k.decode(): int(v) for k, v in (await redis.hgetall(KEYS.accounts)).items()}),
    }
    return Outcome(tensors, checkpoint_folders(bench), [identity(record) for record in await bench.records()], ledger)


def checkpoint_folders(bench: Bench) -> list[str]:
    """Checkpoints, and those that are not whole; without the damaged ones and those that were ahead of the ledger."""
    names = sorted(path.name for path in (bench.folder / "checkpoints").iterdir())
    return [name for name in names if not name.startswith(("damaged_", "ahead_of_ledger_"))]


def identity(record: StepIntent | StepCommit) -> Any:
    """What must be the same in every run: all of an intent, and a commit without its times."""
    if isinstance(record, StepIntent):
        return record
    return record.step, {k: v for k, v in record.metrics.items() if "second" not in k}
