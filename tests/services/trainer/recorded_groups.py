"""What feeds a trainer under test: scored groups in Redis, a run's settings, and a publisher that only takes notes."""

import asyncio
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis.asyncio import Redis

from services.trainer.publish_versions import PublishedVersions
from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import TinyShape, write_tiny_model
from shared.deployment import Deployment
from shared.joining import complete
from shared.logs import Log
from shared.messages import PREFERENCES, TRAINED_KIND, GroupReady, Rollout
from shared.run_settings import RunSettings
from shared.runs import RunRecord, Runs
from shared.scripts import Ledger
from shared.service import Place, Serving
from shared.settings import merge
from shared.topology import Keys

SMALL = TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=48, head_dim=16)
GROUP_SIZE = 4


def small_model(folder: Path) -> Path:
    if not folder.exists():
        write_tiny_model(folder, 0, SMALL)
    return folder


def run_settings(folder: Path, kind: str = "rl", **sections: Any) -> RunSettings:
    tree = {
        "name": "r1",
        "kind": kind,
        "model": {"path": str(folder)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"groups_per_step": 3, **({"group_size": GROUP_SIZE} if kind == "rl" else {})},
        # the log-probabilities of these groups are nobody's, so a first step has nothing to be checked against
        "trainer": {
            "steps": 4,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
            "max_tokens_per_gpu": 64,
            "check_first_step": False,
        },
    }
    return RunSettings.model_validate(merge(tree, sections))


async def start_run(redis: Redis, settings: RunSettings) -> RunRecord:
    runs = Runs(redis)
    await runs.create(settings)
    await runs.activate_next()
    await runs.move(settings.name, ("starting",), "running")
    record = await runs.get(settings.name)
    assert record is not None
    return record


def serving(redis: Redis, record: RunRecord, home: Path) -> Serving:
    deployment = Deployment.model_validate({"paths": {"home": str(home)}})
    return Serving(Place(deployment, redis, Log("trainer"), "trainer"), record, lambda: None)


@cache
def rollouts(group_id: int, kind: str = "rl") -> tuple[Rollout, ...]:
    """The attempts of a group, the same ones every time."""
    random = np.random.default_rng(group_id)
    prompt = random.integers(0, 200, 5).astype(np.int32)
    return tuple(_rollout(random, group_id, attempt, kind, prompt) for attempt in range(_size(kind)))


async def feed(
    redis: Redis,
    run: str,
    group_ids: Iterable[int],
    kind: str = "rl",
    version: int = 0,
    change: Callable[[Rollout], Rollout] = lambda rollout: rollout,
) -> None:
    """Store the groups' payloads and emit them, as the reward worker does; `change` is made to each attempt."""
    ledger = Ledger(redis, Keys(run))
    for group_id in group_ids:
        await ledger.advance("next_group_id", group_id + 1)
        attempts = [change(rollout) for rollout in rollouts(group_id, kind)]
        await ledger.join([complete(rollout) for rollout in attempts])
        lengths = [len(r.prompt_ids) + len(r.token_ids) for r in attempts]
        rewards = [r.reward or 0.0 for r in attempts]
        of_attempts = attempts[0].kind
        ready = GroupReady(group_id, of_attempts, "sums", group_id, lengths, rewards, version, version)
        await ledger.emit((ready, sum(lengths)))


class NotedVersions:
    """Stands where engines are told of versions: keeps a copy of each and moves the counter."""

    def __init__(self, _: Serving, ledger: StepLedger) -> None:
        self._ledger = ledger
        self.published: dict[int, dict[str, torch.Tensor]] = {}

    def stage(self, version: int, step: int, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Any:
        assert version == step
        return version, {name: tensor.clone() for name, tensor in named_tensors}

    async def publish(self, staged: Any) -> int:
        version, tensors = staged
        self.published[version] = tensors
        await self._ledger.served(version)
        return version

    async def serve_joiners(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        return


def publish_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every version published: none is replaced by a newer one, however fast the training."""
    offer = PublishedVersions.offer

    async def offer_and_settle(versions: PublishedVersions, version: int, at_once: bool = False) -> None:
        await offer(versions, version, at_once)
        await versions.settle()

    monkeypatch.setattr(PublishedVersions, "offer", offer_and_settle)


def _size(kind: str) -> int:
    return {"sft": 1, "dpo": 2}.get(kind, GROUP_SIZE)


def _rollout(random: np.random.Generator, group_id: int, attempt: int, kind: str, prompt: Any) -> Rollout:
    length = int(random.integers(2, 9))
    return Rollout(
        group_id=group_id,
        attempt=attempt,
        group_size=_size(kind),
        kind=TRAINED_KIND[kind],
        dataset="sums",
        row=group_id,
        prompt="",
        label=None,
        metadata={},
        prompt_ids=prompt,
        token_ids=random.integers(0, 200, length).astype(np.int32),
        logprobs=np.full(length, -5.0 if kind == "rl" else 0.0, np.float32),
        loss_mask=[(1, length)],
        weight_versions=[(0, length)],
        finish_reason="stop",
        text="",
        worker="w",
        seconds=0.1,
        preference=PREFERENCES[attempt] if kind == "dpo" else None,
        reward=float(random.integers(0, 2)) if kind == "rl" else 0.0,
    )
