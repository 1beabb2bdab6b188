"""An order that fails on rank 0 -> a team that is out of step, and never waits for the others again."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from services.trainer.lead import LeadLearner
from services.trainer.learner import Learner
from services.trainer.orders import Orders
from services.trainer.ranks import Ranks
from services.trainer.share_step import Share
from services.trainer.team import Team
from shared.messages import StepIntent
from tests.services.trainer.ranks.spawned_ranks import SpawnedRanks

INTENT = StepIntent(1, [], 0, 0)


class LeftLearner:
    """Gives weights until nobody takes them any more."""

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(1)
        yield "b", torch.zeros(1)


class FailingLearner:
    """Trains nothing: the device of rank 0 is full."""

    def train(self, *given: object) -> dict[str, float]:
        raise torch.OutOfMemoryError

    def export(self, folder: Path) -> None:
        return


def lead_or_follow(ranks: Ranks) -> list[Any]:
    orders = Orders()
    if ranks.rank:
        return [orders.receive().name, orders.receive().name]
    team = Team(ranks, orders)
    lead = LeadLearner(cast(Learner, FailingLearner()), orders)
    lead.export(Path())
    before = team.is_out_of_step
    with pytest.raises(torch.OutOfMemoryError):
        lead.train([], INTENT, Share([]))
    team.dismiss()
    return [before, team.is_out_of_step]


def test_a_failed_order_puts_the_team_out_of_step_and_nobody_is_told_more(tmp_path: Path) -> None:
    led, followed = SpawnedRanks(2, lead_or_follow, tmp_path / "ranks").results(60)
    assert led == [False, True]
    assert followed == ["export", "train"]


def gather_in_part(ranks: Ranks) -> list[Any]:
    orders = Orders()
    if ranks.rank:
        return [orders.receive().name]
    team, lead = Team(ranks, orders), LeadLearner(cast(Learner, LeftLearner()), orders)
    taken = cast(Generator[Any], lead.named_tensors())
    next(taken)
    taken.close()
    return [team.is_out_of_step]


def test_weights_that_are_gathered_in_part_put_the_team_out_of_step(tmp_path: Path) -> None:
    led, followed = SpawnedRanks(2, gather_in_part, tmp_path / "ranks").results(60)
    assert led == [True]
    assert followed == ["gather"]
