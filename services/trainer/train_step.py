"""The rollouts of one intent -> its optimizer updates: table, estimates, advantages, token weights, packing, backend."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from services.trainer.advantages.samples import Samples
from services.trainer.algorithm import Algorithm
from services.trainer.backend import Backend
from services.trainer.batch_metrics import batch_metrics
from services.trainer.estimates import Estimators
from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.losses.token_weights import token_weights
from services.trainer.packing import PackedSequences, idle_pack, pack, with_columns
from services.trainer.ranks import Ranks
from services.trainer.share_step import Share, cut
from services.trainer.step_columns import step_columns
from services.trainer.step_table import StepTable, gather_table
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import Rollout, StepIntent


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update of a step: which of the step's groups, and this rank's packs of their samples."""

    groups: list[int]
    packed: list[PackedSequences]


class StepTrainer:
    """Trains steps; the same rollouts and intent from the same state on as many ranks give the same weights."""

    def __init__(
        self,
        policy: Backend,
        algorithm: Algorithm,
        learning_rate: Callable[[int], float],
        max_tokens: int,
        is_rl: bool,
        ranks: Ranks,
        estimators: Estimators | None = None,
    ) -> None:
        """`learning_rate` by step, from 1; `max_tokens` is the budget of a micro-batch."""
        self._policy, self._algorithm, self._learning_rate = policy, algorithm, learning_rate
        self._max_tokens, self._is_rl, self._ranks = max_tokens, is_rl, ranks
        self._estimators = estimators or Estimators()

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """One step; its metrics but for the times. `rollouts` are this rank's."""
        table, own = gather_table(rollouts, self._ranks)
        batch, samples = training_batch(rollouts), table.samples()
        updates = self._updates(batch, table.group_id[own].tolist(), intent, len(share.updates))
        packed = [pack for update in updates for pack in update.packed]
        estimates = self._estimators.estimate(packed, len(batch.token_ids))
        rows = torch.arange(len(table.group_id))[own]
        columns, noted = step_columns(self._algorithm, batch, samples, rows, estimates, intent, self._ranks)
        learned = [
            self._update(update, batch, table, samples, rows, columns, intent, number)
            for number, update in enumerate(list(updates) * self._algorithm.epochs)
        ]
        observed = batch_metrics(table, intent.weight_version, self._is_rl)
        return {**_means(learned), **noted, **observed, "learning_rate": self._learning_rate(intent.step)}

    def _updates(self, batch: TrainingBatch, groups: list[int], intent: StepIntent, count: int) -> list[Update]:
        made: list[Update] = []
        for chosen in cut(intent.group_ids, count):
            wanted = torch.tensor([group in set(chosen) for group in groups], dtype=torch.bool)
            made.append(Update(chosen, self._evened(pack(batch, self._max_tokens, wanted))))
        return made

    def _evened(self, packed: list[PackedSequences]) -> list[PackedSequences]:
        """Sharded parameters are gathered by all ranks together, so all make as many passes as the busiest one."""
        most = max(1, int(self._ranks.maximum(torch.tensor(len(packed)))))
        return packed + [idle_pack()] * (most - len(packed))
