"""The rollouts of one step -> flat tensors: every attempt's tokens one after the other, and a column an attempt."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shared.messages import Rollout, expand

NO_VERSION = -1


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One step's attempts on the CPU; `tokens` is the number of prompt and response tokens of all of them."""

    token_ids: torch.Tensor
    """[tokens] int64."""
    loss_mask: torch.Tensor
    """[tokens] bool: the token is trained. Never true for the first token of an attempt: nothing predicts it."""
    old_logprobs: torch.Tensor
    """[tokens] float32, of the policy that sampled the token; 0 where the mask is False."""
    versions: torch.Tensor
    """[tokens] int32: the weight version that sampled the token; NO_VERSION for the prompt."""
    lengths: torch.Tensor
    """[attempts] int64: prompt and response tokens."""
    attempt: torch.Tensor
    """[tokens] int64: which attempt the token belongs to."""
    rewards: torch.Tensor
    """[attempts] float64."""
    group: torch.Tensor
    """[attempts] int64: 0 .. groups - 1, by group id."""


def training_batch(rollouts: list[Rollout]) -> TrainingBatch:
    """Lay out rollouts of any order and any group sizes; an attempt without a reward counts as 0."""
    token_ids = [part for r in rollouts for part in (r.prompt_ids, r.token_ids)]
    masks = [part for r in rollouts for part in (np.zeros(len(r.prompt_ids), np.int32), expand(r.loss_mask))]
    logprobs = [part for r in rollouts for part in (np.zeros(len(r.prompt_ids), np.float32), r.logprobs)]
    versions = [part for r in rollouts for part in (_no_versions(len(r.prompt_ids)), expand(r.weight_versions))]
    lengths = torch.tensor([len(r.prompt_ids) + len(r.token_ids) for r in rollouts], dtype=torch.int64)
    _, group = np.unique(np.asarray([r.group_id for r in rollouts]), return_inverse=True)
    loss_mask = torch.from_numpy(np.concatenate(masks)).bool()
    first = lengths.cumsum(0) - lengths
    loss_mask[first[lengths > 0]] = False
    return TrainingBatch(
        token_ids=torch.from_numpy(np.concatenate(token_ids)).long(),
        loss_mask=loss_mask,
        old_logprobs=torch.from_numpy(np.concatenate(logprobs)) * loss_mask,
        versions=torch.from_numpy(np.concatenate(versions)),
        lengths=lengths,
        attempt=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        rewards=torch.tensor([r.reward or 0.0 for r in rollouts], dtype=torch.float64),
        group=torch.from_numpy(group).long(),
    )


def _no_versions(count: int) -> NDArray[np.int32]:
    return np.full(count, NO_VERSION, np.int32)
