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
from services.trainer.first_step import FIRST_UPDATE, OF_FIRST_UPDATE
from services.trainer.losses.by_staleness import means_by_staleness
from services.trainer.losses.token_weights import token_weights
from services.trainer.packing import MicroBatch, PackedSequences, idle_pack, pack, with_columns
from services.trainer.ranks import Ranks
from services.trainer.share_step import Share, cut
from services.trainer.step_columns import step_columns
from services.trainer.step_costs import StepCosts
from services.trainer.step_table import gather_table
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import Rollout, StepIntent

SHARED_NAMES = ("loss", "grad_norm", "step_skipped", "seconds_optimizer")
"""Metrics that policy and critic both have."""
Rate = Callable[[int], float]
"""The learning rate of a step, which counts from 1."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that learns, and how fast."""

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
        policy: Trained,
        algorithm: Algorithm,
        max_tokens: int,
        kind: str,
        ranks: Ranks,
        estimators: Estimators,
        costs: StepCosts,
        critic: Trained | None = None,
    ) -> None:
        """`max_tokens` is the budget of a micro-batch; `critic` is the second model of PPO."""
        self._policy, self._algorithm = policy, algorithm
        self._max_tokens, self._kind, self._ranks = max_tokens, kind, ranks
        self._estimators, self._costs, self._critic = estimators, costs, critic

    def train(self, rollouts: list[Rollout], intent: StepIntent, share: Share) -> dict[str, float]:
        """One step and its metrics. `rollouts` are this rank's."""
        self._costs.begin()
        table, own = gather_table(rollouts, self._ranks)
        batch, samples = training_batch(rollouts), table.samples()
        row = torch.arange(len(table.group_id))[own][batch.sample]
        groups = torch.from_numpy(table.group_id)
        updates = [
            self._cut(batch, samples, torch.isin(groups, torch.tensor(chosen, dtype=torch.int64)), own)
            for chosen in cut(intent.group_ids, len(share.updates))
        ]
        self._costs.lap("pack")
        estimates = self._estimators.estimate([p for update in updates for p in update.packed], len(row))
        self._costs.lap("estimates")
        columns, noted = step_columns(
            self._algorithm, batch, samples, row, estimates, intent.weight_version, self._ranks
        )
        learned: list[dict[str, float]] = []
        for number, update in enumerate(updates * self._algorithm.epochs):
            weights = self._weights(batch, row, samples, update)
            micro_batches = with_columns(update.packed, replace(columns, weights=weights))
            learned.append(self._learn(micro_batches, intent.step, intent.seed + number))
        self._costs.lap("update")
        observed = batch_metrics(table, intent.weight_version, self._kind == "rl")
        observed |= {"learning_rate": self._policy.learning_rate(intent.step), **self._costs.metrics(table.lengths)}
        return {**means_by_staleness(_joined(learned)), **_first(learned), **noted, **observed}

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
        rate = self._policy.learning_rate(step) if step > self._algorithm.critic_steps else None
        return {**self._policy.backend.train_step(micro_batches, self._algorithm.loss, rate, seed), **metrics}


def _joined(updates: list[dict[str, float]]) -> dict[str, float]:
    """Means over the updates of a step, but `step_skipped` is 1 if one of them was, as for maxima; times add up."""
    joined = {name: fmean(update[name] for update in updates) for name in updates[0]}
    largest = {name: max(update[name] for update in updates) for name in joined if name.endswith(("_max", "_skipped"))}
    added = {name: sum(update[name] for update in updates) for name in joined if "seconds_" in name}
    return {**joined, **largest, **added}


def _first(updates: list[dict[str, float]]) -> dict[str, float]:
    """Of several updates, what was true before one of them had moved anything."""
    if len(updates) == 1:
        return {}
    return {f"{FIRST_UPDATE}{name}": updates[0][name] for name in OF_FIRST_UPDATE if name in updates[0]}
