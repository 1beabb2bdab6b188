"""Whitened advantages against numpy, over one rank and over several."""

import numpy as np
import torch

from services.trainer.advantages.whiten import whiten
from tests.services.trainer.ragged import ragged


def alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def test_trained_tokens_have_mean_zero_and_unbiased_variance_one() -> None:
    batch = ragged(8)
    advantages, mask = batch.column(1, 3.0) + 2, batch.mask.numpy()
    own = advantages.numpy()[mask]
    expected = np.zeros(len(mask))
    expected[mask] = (own - own.mean()) / np.sqrt(own.var(ddof=1) + 1e-8)
    ours = whiten(advantages, batch.mask, torch.zeros_like(batch.sample), 1, alone)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_datasets_are_whitened_each_by_itself() -> None:
    batch = ragged(9)
    advantages, dataset = batch.column(1) * 10, batch.samples.dataset[batch.sample]
    ours = whiten(advantages, batch.mask, dataset, 2, alone)
    for one in (0, 1):
        own = batch.mask & (dataset == one)
        expected = whiten(advantages, own, torch.zeros_like(dataset), 1, alone)
        torch.testing.assert_close(ours[own], expected[own])


def test_ranks_that_add_up_their_sums_agree_with_one_rank_that_has_all_tokens() -> None:
    batch = ragged(10)
    advantages, part = batch.column(4), torch.zeros_like(batch.sample)
    whole = whiten(advantages, batch.mask, part, 1, alone)
    shares = [batch.sample % 3 == rank for rank in range(3)]
    calls: list[list[torch.Tensor]] = []
    for share in shares:
        own: list[torch.Tensor] = []
        whiten(advantages[share], batch.mask[share], part[share], 1, lambda sums, own=own: own.append(sums) or sums)
        calls.append(own)
    first = torch.stack([own[0] for own in calls]).sum(0)
    mean = first[1] / first[0]
    squares = ((advantages[batch.mask] - mean) ** 2).sum()[None]
    for share in shares:
        answers = iter([first, squares])
        ours = whiten(advantages[share], batch.mask[share], part[share], 1, lambda _, answers=answers: next(answers))
        torch.testing.assert_close(ours, whole[share], rtol=1e-12, atol=1e-12)


def test_one_token_equal_tokens_and_none_are_zero_and_finite() -> None:
    for values, trained in (([3.0, 1.0], [True, False]), ([0.1, 0.1], [True, True]), ([1.0, 2.0], [False, False])):
        mask, zeros = torch.tensor(trained), torch.zeros(2, dtype=torch.int64)
        ours = whiten(torch.tensor(values, dtype=torch.float64), mask, zeros, 1, alone)
        assert ours.abs().max().item() < 1e-9
