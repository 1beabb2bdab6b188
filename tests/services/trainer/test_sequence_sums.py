"""Discounted and whole sums of sequences against loops, and their gradients."""

import numpy as np
import pytest
import torch

from services.trainer.sequence_sums import discounted_sums, sequence_means, sequence_sums
from tests.services.trainer.ragged import ragged


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, 1.0])
def test_a_sum_reaches_to_the_end_of_its_own_sequence(factor: float) -> None:
    batch = ragged(3)
    values, sequence = batch.column(1), batch.sample.tolist()
    expected = [
        sum(factor ** (i - t) * values[i].item() for i in range(t, len(sequence)) if sequence[i] == sequence[t])
        for t in range(len(sequence))
    ]
    np.testing.assert_allclose(discounted_sums(values, batch.sample, factor).tolist(), expected, rtol=1e-12, atol=1e-12)


def test_a_sequence_of_a_hundred_thousand_tokens_is_exact() -> None:
    values, sequence = torch.ones(100_000, dtype=torch.float64), torch.zeros(100_000, dtype=torch.int64)
    assert discounted_sums(values, sequence).tolist() == list(range(100_000, 0, -1))


def test_whole_sums_and_means_stand_at_every_token() -> None:
    batch = ragged(4)
    values = batch.column(2).numpy()
    for row, sample in enumerate(batch.sample.tolist()):
        own = values[batch.sample.numpy() == sample]
        assert sequence_sums(torch.from_numpy(values), batch.sample)[row].item() == pytest.approx(own.sum())
        assert sequence_means(torch.from_numpy(values), batch.sample)[row].item() == pytest.approx(own.mean())


def test_gradients_of_whole_sums_go_to_the_whole_sequence() -> None:
    values = torch.arange(5.0, dtype=torch.float64).requires_grad_()
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    (sequence_sums(values, torch.tensor([7, 7, 3, 3, 3])) * weights).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [3.0, 3.0, 28.0, 28.0, 28.0]


def test_no_tokens_have_no_sums() -> None:
    nothing = torch.zeros(0)
    assert discounted_sums(nothing, nothing.long(), 0.5).shape == sequence_means(nothing, nothing.long()).shape == (0,)


def test_what_is_not_finite_in_one_sequence_does_not_reach_its_neighbour() -> None:
    values, sequence = torch.tensor([1.0, torch.inf, torch.nan, 2.0]), torch.tensor([0, 1, 2, 3])
    sums = sequence_sums(values, sequence)
    assert [sums[0].item(), sums[3].item()] == [1.0, 2.0]
