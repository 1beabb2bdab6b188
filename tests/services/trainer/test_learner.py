"""A learner in front of steps with little or nothing to learn from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.backend import State
from services.trainer.open_learner import open_learner
from services.trainer.ranks import OneRank
from services.trainer.share_step import share_of
from shared.messages import Rollout, StepIntent
from tests.services.trainer.recorded_groups import rollouts, run_settings, small_model


def masked(rollout: Rollout) -> Rollout:
    """None of its tokens is trained, as if all came from a tool."""
    return replace(rollout, loss_mask=[(0, len(rollout.token_ids))])


def copied(state: State) -> State:
    return {part: {name: tensor.clone() for name, tensor in tensors.items()} for part, tensors in state.items()}


def moved(before: State, after: State) -> bool:
    parts = ("weights", "optimizer")
    return not all(torch.equal(t, after[part][name]) for part in parts for name, t in before[part].items())


@pytest.mark.parametrize("trainer", [{}, {"updates_per_step": 3}, {"updates_per_step": 3, "epochs": 2}])
@pytest.mark.parametrize("trained_group", [None, 1])
def test_what_is_masked_moves_nothing_and_what_is_not_is_trained(
    tmp_path: Path, trainer: dict[str, Any], trained_group: int | None
) -> None:
    settings = run_settings(small_model(tmp_path / "model"), trainer={**trainer, "weight_decay": 0.1})
    learner, intent = open_learner(settings, torch.device("cpu")), StepIntent(1, [0, 1, 2], 0, 5)
    scored = [replace(r, reward=float(r.attempt % 2)) for group in intent.group_ids for r in rollouts(group)]
    given = [r if r.group_id == trained_group else masked(r) for r in scored]
    before = copied(learner.state())
    metrics = learner.train(given, intent, share_of(settings, intent, OneRank()))
    assert moved(before, learner.state()) == (trained_group is not None)
    expected = sum(len(r.token_ids) for r in rollouts(1)) if trained_group else 0
    assert (metrics["trained_tokens"], metrics["step_skipped"]) == (expected, 0)
    assert (metrics["grad_norm"] > 0) == (trained_group is not None)
