"""The rollouts of one intent -> one optimizer step: batch, advantages, token weights, packing, backend."""

from collections.abc import Callable

from services.trainer.algorithm import Algorithm
from services.trainer.backend import Backend
from services.trainer.batch_metrics import batch_metrics
from services.trainer.losses.token_weights import token_weights
from services.trainer.packing import pack
from services.trainer.training_batch import training_batch
from shared.messages import Rollout, StepIntent


class StepTrainer:
    """Trains steps; the same rollouts and intent from the same state give the same weights."""

    def __init__(
        self,
        backend: Backend,
        algorithm: Algorithm,
        learning_rate: Callable[[int], float],
        max_tokens: int,
        is_rl: bool,
    ) -> None:
        """`learning_rate` by step, from 1; `max_tokens` is the budget of a micro-batch."""
        self._backend, self._algorithm, self._learning_rate = backend, algorithm, learning_rate
        self._max_tokens, self._is_rl = max_tokens, is_rl

    def train(self, rollouts: list[Rollout], intent: StepIntent) -> dict[str, float]:
        """One step; its metrics but for the times."""
        batch = training_batch(rollouts)
        advantages = self._algorithm.advantages(batch.rewards, batch.group).float()[batch.attempt]
        weights = token_weights(batch.loss_mask, batch.attempt, self._algorithm.aggregation)
        micro_batches = pack(batch, advantages, weights, self._max_tokens)
        rate = self._learning_rate(intent.step)
        learned = self._backend.train_step(micro_batches, self._algorithm.loss, rate, intent.seed)
        observed = batch_metrics(rollouts, intent.weight_version, self._is_rl)
        return {**learned, **observed, "learning_rate": rate}
