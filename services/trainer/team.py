"""The processes of the trainer, as its loop on rank 0 sees them: alone, or with others that follow its orders."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from services.trainer.checkpoint import Checkpoints
from services.trainer.lead import LeadCheckpoints, LeadLearner
from services.trainer.learner import Learner
from services.trainer.open_learner import open_learner
from services.trainer.orders import Orders
from services.trainer.ranks import OneRank, Ranks, join_ranks
from services.trainer.recorded_run import owner_of
from services.trainer.share_step import Share, share_of
from shared.logs import Log
from shared.messages import StepIntent
from shared.run_settings import RunSettings
from shared.runs import RunRecord

COLLECTIVE_DEADLINE_S = 1800.0
"""Seconds that a rank waits for the others within one operation, the longest of which is the load of a big model."""


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks and, where there are several, the channel to them."""

    ranks: Ranks = field(default_factory=OneRank)
    orders: Orders | None = None

    def open(self, record: RunRecord, device: torch.device) -> Learner:
        """The run's initial models on all ranks; RunRejected if they cannot be trained."""
        if self.orders is None:
            return open_learner(record.settings, device, self.ranks)
        settings = record.settings.model_dump(mode="json")
        with self.orders.together("open", run=record.run, owner=owner_of(record), settings=settings):
            return LeadLearner(open_learner(record.settings, device, self.ranks), self.orders)

    def checkpoints(self, folder: Path, owner: str, settings: RunSettings, log: Log) -> Checkpoints:
        """The run's checkpoints, written and read by all ranks."""
        keep = settings.trainer.keep_checkpoints
        if self.orders is None:
            return Checkpoints(folder, owner, keep, log)
        return LeadCheckpoints(folder, owner, keep, log, self.ranks, orders=self.orders)

    def share(self, settings: RunSettings, intent: StepIntent) -> Share:
        """What this rank trains of a step."""
        return share_of(settings, intent, self.ranks)

    @property
    def is_out_of_step(self) -> bool:
        """Whether rank 0 failed in what the others may still be waiting for, so that all have to begin anew."""
        return self.orders is not None and self.orders.are_out_of_step

    def dismiss(self) -> None:
        """Let the others end; to be called once nothing is computed any more."""
        if self.orders is not None and not self.is_out_of_step:
            self.orders.send("exit")


def join_team() -> Team:
    """The team of the torchrun that started this process; alone without one."""
    ranks = join_ranks(COLLECTIVE_DEADLINE_S)
    return Team(ranks, Orders() if ranks.size > 1 else None)
