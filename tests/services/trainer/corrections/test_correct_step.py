"""Weights that are worked out for a whole step before it begins."""

from functools import partial

import pytest
import torch

from services.trainer.corrections.combine import combine
from services.trainer.corrections.correct_step import correct_step
from services.trainer.corrections.mis import mis
from services.trainer.corrections.rejection import reject
from tests.services.trainer.corrections.mismatched import mismatched

CORRECTION = combine(
    [
        partial(mis, level="geometric", mode="truncate", bounds=(0.5, 1.2)),
        partial(reject, level="token", bounds=(0.5, 2.0)),
    ]
)


def test_weights_of_trained_tokens_have_mean_one_where_they_are_not_rejected() -> None:
    tokens = mismatched(1)
    mask = torch.arange(len(tokens.sample)) % 3 != 0
    columns, sums = correct_step(CORRECTION, tokens, mask, lambda own: own)
    assert columns.correction is not None
    weight = columns.correction
    assert set(weight[~mask].tolist()) == {0.0}
    kept = weight[weight > 0]
    torch.testing.assert_close(kept.mean(), torch.ones((), dtype=torch.float64))
    assert sums["correction_mean"].item() == pytest.approx(weight.sum().item())
    assert sums["rejected_fraction"].item() == mask.sum().item() - len(kept) > 0


def test_masked_tokens_do_not_enter_the_ratio_of_their_sample() -> None:
    tokens = mismatched(2)
    mask = torch.arange(len(tokens.sample)) % 2 == 0
    assert tokens.proximal_logprobs is not None
    before, _ = correct_step(CORRECTION, tokens, mask, lambda own: own)
    tokens.proximal_logprobs[~mask] += 5.0
    after, _ = correct_step(CORRECTION, tokens, mask, lambda own: own)
    assert before.correction is not None
    assert after.correction is not None
    assert torch.equal(before.correction, after.correction)
