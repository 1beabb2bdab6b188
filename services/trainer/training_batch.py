"""The rollouts of one step -> flat tensors: every sample's tokens one after the other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.messages import Rollout, expand

NO_VERSION = -1


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A rank's samples of one step on the CPU, a sample being the tokens that go through the model as one sequence."""

    token_ids: torch.Tensor
    """[tokens] int64."""
    loss_mask: torch.Tensor
    """[tokens] bool: the token is trained. Never true for the first token of a sample: nothing predicts it."""
    behaviour_logprobs: torch.Tensor
    """[tokens] float32, of the policy that sampled the token; 0 where the mask is False."""
    versions: torch.Tensor
    """[tokens] int32: the weight version that sampled the token; NO_VERSION for the prompt."""
    lengths: torch.Tensor
    """[samples] int64: prompt and response tokens."""
    sample: torch.Tensor
    """[tokens] int64: which sample the token belongs to."""
    teacher_logprobs: torch.Tensor | None
    """[tokens] float32, of a served teacher; 0 where the mask is False. None if an attempt was not judged."""
    pair: torch.Tensor
    """[tokens] int64: in a run of kind dpo, 2 p for the chosen and 2 p + 1 for the rejected answer of the batch's p-th
    group; else 2 p."""


def training_batch(rollouts: list[Rollout]) -> TrainingBatch:
    """Lay out rollouts one after the other, in any order and of any group sizes."""
    token_ids = [part for r in rollouts for part in (r.prompt_ids, r.token_ids)]
    masks = [part for r in rollouts for part in (np.zeros(len(r.prompt_ids), np.int32), expand(r.loss_mask))]
    logprobs = [part for r in rollouts for part in (np.zeros(len(r.prompt_ids), np.float32), r.logprobs)]
    versions = [part for r in rollouts for part in (_no_versions(len(r.prompt_ids)), expand(r.weight_versions))]
    lengths = torch.tensor([len(r.prompt_ids) + len(r.token_ids) for r in rollouts], dtype=torch.int64)
    loss_mask = torch.from_numpy(_joined(masks, np.int32)).bool()
    first = lengths.cumsum(0) - lengths
    _, group = np.unique(np.asarray([r.group_id for r in rollouts], np.int64), return_inverse=True)
    pair = torch.from_numpy(2 * group + np.asarray([r.preference == "rejected" for r in rollouts], np.int64))
    sample = torch.repeat_interleave(torch.arange(len(rollouts)), lengths)
    loss_mask[first[lengths > 0]] = False
    return TrainingBatch(
        token_ids=torch.from_numpy(_joined(token_ids, np.int32)).long(),
        loss_mask=loss_mask,
        behaviour_logprobs=torch.from_numpy(_joined(logprobs, np.float32)) * loss_mask,
        versions=torch.from_numpy(_joined(versions, np.int32)),
        lengths=lengths,
        sample=sample,
        teacher_logprobs=_of_teacher(rollouts, loss_mask),
        pair=pair.long()[sample],
    )


def _of_teacher(rollouts: list[Rollout], mask: torch.Tensor) -> torch.Tensor | None:
    parts: list[NDArray[Any]] = []
    for rollout in rollouts:
        if rollout.teacher_logprobs is None:
            return None
        parts += [np.zeros(len(rollout.prompt_ids), np.float32), rollout.teacher_logprobs]
    return torch.from_numpy(_joined(parts, np.float32)) * mask


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


def _no_versions(count: int) -> NDArray[np.int32]:
    return np.full(count, NO_VERSION, np.int32)
