"""Corrections together, and what they measure."""

from functools import partial

import numpy as np
import pytest

from services.trainer.corrections.combine import combine
from services.trainer.corrections.opsm import opsm
from services.trainer.corrections.rejection import reject
from services.trainer.corrections.staleness_mask import staleness_mask
from services.trainer.corrections.tis import tis
from tests.services.trainer.corrections.mismatched import corrected, log_ratios, mismatched, nothing

PARTS = [partial(tis, bounds=(0.0, 1.5)), partial(opsm, delta=0.1), partial(staleness_mask, most=3)]


def test_weights_are_multiplied_and_metrics_are_of_the_product() -> None:
    tokens = mismatched(8)
    weight, sums = corrected(combine(PARTS), tokens)
    factors = [np.asarray(corrected(part, tokens)[0]) for part in PARTS]
    assert weight == pytest.approx(np.prod(factors, axis=0), rel=1e-12)
    assert sums["correction_mean"].item() == pytest.approx(sum(weight))
    assert sums["rejected_fraction"].item() == weight.count(0.0) > 0
    assert sums["correction_clipped_fraction"].item() == (factors[0] == 1.5).sum() > 0


def test_the_mismatch_is_measured_token_by_token() -> None:
    tokens = mismatched(9)
    _, sums = corrected(combine(PARTS), tokens)
    gap = log_ratios(tokens)[0]
    assert sums["mismatch_kl"].item() == pytest.approx(-gap.sum())
    assert sums["mismatch_k3"].item() == pytest.approx((np.exp(gap) - 1 - gap).sum())
    assert sums["mismatch_chi_square"].item() == pytest.approx((np.exp(2 * gap) - 1).sum())


def test_policies_that_agree_are_not_corrected() -> None:
    tokens = mismatched(10, drift=0.0)
    weight, sums = corrected(combine([PARTS[0], partial(reject, level="sequence", bounds=(0.5, 2.0))]), tokens)
    assert set(weight) == {1.0}
    assert sums["mismatch_k3"].item() == sums["rejected_fraction"].item() == 0


def test_a_micro_batch_without_tokens_has_the_same_metrics() -> None:
    _, full = corrected(combine(PARTS), mismatched(8))
    weight, sums = combine(PARTS)(*nothing())
    assert len(weight) == 0
    assert sums.keys() == full.keys()
    assert {value.item() for value in sums.values()} == {0.0}
