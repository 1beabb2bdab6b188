"""The rollouts of one intent -> its optimizer updates: estimates, columns, token weights, packing, backend."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from services.trainer.advantages.samples import Samples
from services.trainer.algorithm import Algorithm
from services.trainer.backend import Backend
from services.trainer.batch_metrics import batch_metrics
from services.trainer.estimates import Estimators
from services.trainer.losses.token_weights import token_weights
from services.trainer.packing import MicroBatch, PackedSequences, idle_pack, pack, with_columns
from services.trainer.ranks import Ranks
from services.trainer.share_step import Share, cut
from services.trainer.step_columns import step_columns
from services.trainer.step_table import gather_table
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import Rollout, StepIntent

SHARED_NAMES = ("loss", "grad_norm", "step_skipped")
"""Metrics that policy and critic both have."""
Rate = Callable[[int], float]
"""The learning rate of a step, which counts from 1."""


@dataclass(frozen=True, slots=True)
class Critic:
    """The second model of PPO and what it learns by."""

    backend: Backend
    learning_rate: Rate


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update of a step: this rank's packs of it, and the step's samples that it trains."""

    packed: list[PackedSequences]
    trained: torch.Tensor
    """[samples over all ranks] int64: trained tokens, 0 for samples of other updates."""


class StepTrainer:
    """Trains steps; the same rollouts and intent from the same state on as many ranks give the same weights."""

    def __init__(
        self,
        policy: Backend,
        algorithm: Algorithm,
        learning_rate: Rate,
        max_tokens: int,
        kind: str,
        ranks: Ranks,
        estimators: Estimators,
        critic: Critic | None = None,
    ) -> None:
        """`max_tokens` is the budget of a micro-batch."""
        self._policy, self._algorithm, self._learning_rate = policy, algorithm, learning_rate
        self._max_tokens, self._kind, self._ranks = max_tokens, kind, ranks
        self._estimators, self._critic = estimators, critic

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """One step; its metrics but for the times. `rollouts` are this rank's."""
        table, own = gather_table(rollouts, self._ranks)
        batch, samples = training_batch(rollouts), table.samples()
        row = torch.arange(len(table.group_id))[own][batch.sample]
        groups = torch.from_numpy(table.group_id)
        updates = [
            self._cut(batch, samples, torch.isin(groups, torch.tensor(chosen, dtype=torch.int64)), own)
            for chosen in cut(intent.group_ids, len(share.updates))
        ]
        estimates = self._estimators.estimate([p for update in updates for p in update.packed], len(row))
        columns, noted = step_columns(
            self._algorithm, batch, samples, row, estimates, intent.weight_version, self._ranks
        )
        learned: list[dict[str, float]] = []
        for number, update in enumerate(updates * self._algorithm.epochs):
            weights = self._weights(batch, row, samples, update)
            micro_batches = with_columns(update.packed, replace(columns, weights=weights))
            learned.append(self._learn(micro_batches, intent.step, intent.seed + number))
        observed = batch_metrics(table, intent.weight_version, self._kind == "rl")
        return {**_means(learned), **noted, **observed, "learning_rate": self._learning_rate(intent.step)}

    def _cut(self, batch: TrainingBatch, samples: Samples, chosen: torch.Tensor, own: slice) -> Update:
        packed = pack(batch, self._max_tokens, chosen[own], pairs=self._kind == "dpo")
        # sharded parameters are gathered by all ranks together, so all make as many passes as the busiest one
        most = max(1, int(self._ranks.maximum(torch.tensor(len(packed)))))
        packed += [idle_pack()] * (most - len(packed))
        return Update(packed, torch.where(chosen, samples.trained, 0))

    def _weights(self, batch: TrainingBatch, row: torch.Tensor, samples: Samples, update: Update) -> torch.Tensor:
        part, algorithm = replace(samples, trained=update.trained), self._algorithm
        mask = batch.loss_mask & (update.trained[row] > 0)
        return token_weights(mask, row, part, algorithm.aggregation, algorithm.constant_length)

    def _learn(self, micro_batches: list[MicroBatch], step: int, seed: int) -> dict[str, float]:
        """One update of the critic, where there is one, and of the policy, once the critic has had its first steps."""
        metrics: dict[str, float] = {}
        if self._critic is not None:
            assert self._algorithm.value_loss is not None
            rate = self._critic.learning_rate(step)
            learned = self._critic.backend.train_step(micro_batches, self._algorithm.value_loss, rate, seed)
            metrics = {f"critic_{k}" if k in SHARED_NAMES else k: value for k, value in learned.items()}
        rate = self._learning_rate(step) if step > self._algorithm.critic_steps else None
        return {**self._policy.train_step(micro_batches, self._algorithm.loss, rate, seed), **metrics}


def _means(updates: list[dict[str, float]]) -> dict[str, float]:
    """Over the updates of a step; `step_skipped` is 1 if one of them was, maxima are the largest."""
    joined = {name: fmean(update[name] for update in updates) for name in updates[0]}
    largest = {name: max(update[name] for update in updates) for name in joined if name.endswith(("_max", "_skipped"))}
    return {**joined, **largest}
