"""What a run's watch reads of a step: the same from two ranks as from one, wherever the stale tokens lie."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from benchmarks.free_ports import free_port
from services.trainer.first_step import OF_FIRST_UPDATE
from services.trainer.open_learner import open_learner
from services.trainer.ranks import OneRank, Ranks, ranks_of_group
from services.trainer.share_step import share_of
from shared.messages import Rollout, StepIntent
from shared.run_settings import RunSettings
from tests.services.trainer.recorded_groups import rollouts, run_settings, small_model

GROUPS = [0, 1, 2]


def attempts() -> dict[int, list[Rollout]]:
    """Attempt 0 of group 0 alone is stale, so that one of two ranks has no token of its place."""
    return {
        group: [
            replace(one, weight_versions=[(0 if (group, one.attempt) == (0, 0) else 2, len(one.token_ids))])
            for one in rollouts(group)
        ]
        for group in GROUPS
    }


def trained(settings: RunSettings, ranks: Ranks) -> dict[str, float]:
    groups = attempts()
    lengths = [[len(one.prompt_ids) + len(one.token_ids) for one in groups[group]] for group in GROUPS]
    intent = StepIntent(3, GROUPS, 2, 7, lengths)
    share = share_of(settings, intent, ranks)
    own = [
        one
        for group, chosen in share.attempts.items()
        for one in groups[group]
        if chosen is None or one.attempt in chosen
    ]
    return open_learner(settings, torch.device("cpu"), ranks).train(own, intent, share)


def on_rank(rank: int, port: int, settings: RunSettings, file: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    metrics = trained(settings, ranks_of_group(timedelta(seconds=60)))
    if rank == 0:
        torch.save(metrics, file)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trainer": {"epochs": 2, "kl": {"measure": True}}, "rollout": {"max_staleness": 4}}
    settings = run_settings(small_model(tmp_path / "model"), **changes)
    alone = trained(settings, OneRank())
    file = tmp_path / "metrics.pt"
    multiprocessing.spawn(on_rank, (free_port(), settings, str(file)), nprocs=2)
    together = torch.load(file)
    watched = [name for name in alone if name.startswith(("logprob_diff", "first_update_"))]
    assert {"logprob_diff_staleness_0", "logprob_diff_staleness_2"} <= set(watched)
    assert {f"first_update_{name}" for name in OF_FIRST_UPDATE[:3]} <= set(watched)
    assert together.keys() == alone.keys()
    for name in watched:
        assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name
