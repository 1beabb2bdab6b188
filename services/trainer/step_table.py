"""The rollouts of a step on all ranks -> one small table, the same on every rank: a row for each sample."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.trainer.advantages.samples import Samples
from services.trainer.ranks import Ranks
from shared.messages import Rollout

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepTable:
    """Columns of [samples] over all ranks, in the order of ranks."""

    group_id: Whole
    attempt: Whole
    """Of its group: 0 .. group_size - 1. Samples that share group and attempt are siblings, parts of one execution."""
    dataset: Whole
    """A hash of its name."""
    prompt_tokens: Whole
    response_tokens: Whole
    trained_tokens: Whole
    oldest_version: Whole
    """-1 where no version sampled a token."""
    newest_version: Whole
    version_sum: Whole
    """Over the tokens that a version sampled."""
    versioned_tokens: Whole
    truncated: Whole
    reward: NDArray[np.float64]
    """0 for a sample without one."""

    @property
    def tokens(self) -> int:
        return int(self.prompt_tokens.sum() + self.response_tokens.sum())

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return (self.prompt_tokens + self.response_tokens).tolist()

    def samples(self) -> Samples:
        """What advantages are made of."""
        executions = np.stack([self.group_id, self.attempt])
        return Samples(
            reward=torch.from_numpy(self.reward),
            group=_numbered(np.unique(self.group_id, return_inverse=True)[1]),
            attempt=_numbered(np.unique(executions, axis=1, return_inverse=True)[1]),
            dataset=_numbered(np.unique(self.dataset, return_inverse=True)[1]),
            trained=torch.from_numpy(np.ascontiguousarray(self.trained_tokens)),
        )


def _numbered(index: Whole) -> torch.Tensor:
    return torch.from_numpy(index).long().flatten()


WHOLE_COLUMNS = 11


def gather_table(rollouts: Sequence[Rollout], ranks: Ranks) -> tuple[StepTable, slice]:
    """The table of all ranks, and where this rank's rows stand in it."""
    own = torch.tensor([_row(rollout) for rollout in rollouts], dtype=torch.int64).reshape(-1, WHOLE_COLUMNS)
    rewards = torch.tensor([rollout.reward or 0.0 for rollout in rollouts], dtype=torch.float64).reshape(-1, 1)
    counts = ranks.gather_rows(torch.tensor([[len(rollouts)]])).flatten().tolist()
    first = sum(counts[: ranks.rank])
    whole, reward = ranks.gather_rows(own).numpy(), ranks.gather_rows(rewards).flatten().numpy()
    return StepTable(*whole.T, reward=reward), slice(first, first + len(rollouts))


def _row(rollout: Rollout) -> tuple[int, ...]:
    versions = [(version, count) for version, count in rollout.weight_versions if count]
    trained = sum(count for value, count in rollout.loss_mask if value)
    nothing_predicts = bool(not len(rollout.prompt_ids) and rollout.loss_mask and rollout.loss_mask[0][0])
    return (
        rollout.group_id,
        rollout.attempt,
        zlib.crc32(rollout.dataset.encode()),
        len(rollout.prompt_ids),
        len(rollout.token_ids),
        trained - nothing_predicts,
        min((version for version, _ in versions), default=-1),
        max((version for version, _ in versions), default=-1),
        sum(version * count for version, count in versions),
        sum(count for _, count in versions),
        int(rollout.finish_reason == "length"),
    )
